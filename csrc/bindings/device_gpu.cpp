// What the CUDA build tells of itself and its devices, and its streams beside those of others.
#include "bindings/bind.hpp"
#include "bindings/device.hpp"
#include "core/gpu.hpp"
#include "ops/gemm.hpp"
#include "ops/gemm_gpu.hpp"

SP_BEGIN

namespace {

constexpr int architectures[] = {SADDLEPOINT_CUDA_ARCHITECTURES};  // ascending, as in 80

std::string decimal(int major, int minor) {
    return std::to_string(major) + "." + std::to_string(minor);
}

// Why no device can be used; empty when one can.
std::string problem() {
    if (forked()) return "CUDA was in use when this process was forked; start it by spawning";
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
        (void)cudaGetLastError();
        return cudaGetErrorString(status);
    }
    if (count == 0) return "no device";
    begin_use();
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    const int least = architectures[0];
    if (10 * properties.major + properties.minor < least) {
        return std::string(properties.name) + " has compute capability " +
               decimal(properties.major, properties.minor) + ", this build is for " +
               decimal(least / 10, least % 10) + " and above";
    }
    return "";
}

py::list devices() {
    py::list result;
    int count = 0;
    if (forked() || cudaGetDeviceCount(&count) != cudaSuccess) {
        (void)cudaGetLastError();
        return result;
    }
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp properties{};
        check(cudaGetDeviceProperties(&properties, i), "cudaGetDeviceProperties");
        py::dict d;
        d["name"] = properties.name;
        d["compute capability"] = decimal(properties.major, properties.minor);
        d["memory bytes"] = properties.totalGlobalMem;
        result.append(d);
    }
    return result;
}

std::string build() {
    std::string text = "CUDA " + decimal(CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10) + ",";
    for (int a : architectures) text += " sm_" + std::to_string(a);
    return text;
}

// An owner kept until the stream is done with its memory.
struct Borrowed {
    py::object owner;
    Stream stream;
};

}  // namespace

int device_type() { return dlpack::cuda; }
const char* device_word() { return "cuda"; }

Stream current_stream() {
    if (!has_thread_stream() || forked()) {
        const std::string why = problem();
        if (!why.empty()) throw DeviceError("device: no CUDA device can be used: " + why);
    }
    return thread_stream();
}

std::uintptr_t stream_handle(const Stream& stream) {
    return reinterpret_cast<std::uintptr_t>(native(stream).stream);
}

bool make_consumer_wait(const Stream& ours, std::intptr_t consumer) {
    const Native& n = native(ours);
    const auto theirs = reinterpret_cast<cudaStream_t>(consumer);  // DLPack's 1 and 2 are CUDA's
    if (theirs == n.stream) return false;
    if (consumer == -1) return true;  // asks for no order
    order(n.stream, theirs);
    return true;
}

void wait_for_consumers() noexcept {
    if (forked()) return;
    try {
        const DeviceGuard guard;
        check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    } catch (const DeviceError&) {
    }
}

py::object keep_until_done(py::object owner) {
    return py::capsule(new Borrowed{std::move(owner), current_stream()}, [](void* pointer) {
        const std::unique_ptr<Borrowed> borrowed(static_cast<Borrowed*>(pointer));
        if (forked()) return;
        try {
            borrowed->stream.synchronize();
        } catch (const DeviceError&) {
        }
    });
}

void bind_device(py::module_& m) {
    m.def("available", [] { return problem().empty(); });
    m.def("reason", &problem);
    m.def("devices", &devices);
    m.def("build", &build);
    m.def("synchronize", [] {
        if (!has_thread_stream()) return;
        const Stream stream = current_stream();
        const py::gil_scoped_release release;
        stream.synchronize();
    });
    m.def("blas", &blas_name);
    m.def("set_cublas_path", &set_library_path, py::arg("path"));
}

SP_END
