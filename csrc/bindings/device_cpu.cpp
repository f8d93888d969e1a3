// What the CPU build tells of itself, and the settings it has.
#include "bindings/bind.hpp"
#include "bindings/device.hpp"
#include "core/isa_cpu.hpp"
#include "core/threads_cpu.hpp"
#include "ops/gemm.hpp"

SP_BEGIN

int device_type() { return dlpack::cpu; }
const char* device_word() { return "cpu"; }
Stream current_stream() { return {}; }
Stream foreign_stream(std::uintptr_t) { return {}; }
std::uintptr_t stream_handle(const Stream&) { return 0; }
bool make_consumer_wait(const Stream&, std::intptr_t) { return false; }
void wait_for_consumers() noexcept {}
py::object keep_until_done(py::object owner) { return owner; }

void bind_device(py::module_& m) {
    m.def("num_threads", &num_threads);
    m.def(
        "set_num_threads",
        [](int n) {
            if (n < 1) raise_value("n", "at least 1", std::to_string(n));
            set_num_threads(n);
        },
        py::arg("n"));
    m.def("isa", &isa_name);
    m.def(
        "set_isa",
        [](const char* name) {
            if (!set_isa(name)) raise_value("name", "an instruction set of this machine", name);
        },
        py::arg("name"));
    m.def("blas", &blas_name);
}

SP_END
