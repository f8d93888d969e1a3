// A piece of device memory that Python owns, exported by DLPack.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>

#include "bindings/bind.hpp"
#include "bindings/view.hpp"
#include "core/buffer.hpp"

SP_BEGIN

namespace {

struct Exported {
    dlpack::ManagedVersioned versioned;
    dlpack::Managed legacy;
    std::vector<index> shape, strides;
    std::shared_ptr<Buffer> buffer;
};

template <class M>
void give_back(M* managed) {
    delete static_cast<Exported*>(managed->context);
}
template <class M>
void give_back_lent(M* managed) {
    wait_for_consumers();
    give_back(managed);
}

template <class M>
void destroy_unused(PyObject* capsule, const char* name) {
    // A consumer that took the tensor renames the capsule and calls the deleter itself.
    if (!PyCapsule_IsValid(capsule, name)) return;
    auto* managed = static_cast<M*>(PyCapsule_GetPointer(capsule, name));
    managed->deleter(managed);
}

py::capsule to_dlpack(const std::shared_ptr<Buffer>& buffer, index offset,
                      const std::vector<index>& shape, const std::vector<index>& strides, int code,
                      int bits, bool versioned, const py::object& stream) {
    // DLPack: without a stream, the consumer's is the legacy default one, which is 1.
    const auto consumer = stream.is_none() ? 1 : py::cast<std::intptr_t>(stream);
    const bool lent = make_consumer_wait(buffer->stream(), consumer);
    auto exported = std::make_unique<Exported>();
    Exported& e = *exported;
    e.shape = shape;
    e.strides = strides;
    e.buffer = buffer;
    dlpack::Tensor tensor{};
    // Some consumers want no byte_offset, and take the memory from `data` on as all there is.
    tensor.data = static_cast<char*>(buffer->data()) + offset;
    tensor.device = {device_type(), 0};
    tensor.ndim = static_cast<int>(shape.size());
    tensor.dtype = {static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1};
    tensor.shape = e.shape.data();
    tensor.strides = e.strides.data();
    if (versioned) {
        constexpr auto kept = &give_back<dlpack::ManagedVersioned>;
        constexpr auto waits = &give_back_lent<dlpack::ManagedVersioned>;
        e.versioned = {1, 0, exported.get(), lent ? waits : kept, 0, tensor};
        return py::capsule(&exported.release()->versioned, "dltensor_versioned", [](PyObject* c) {
            destroy_unused<dlpack::ManagedVersioned>(c, "dltensor_versioned");
        });
    }
    constexpr auto kept = &give_back<dlpack::Managed>, waits = &give_back_lent<dlpack::Managed>;
    e.legacy = {tensor, exported.get(), lent ? waits : kept};
    return py::capsule(&exported.release()->legacy, "dltensor",
                       [](PyObject* c) { destroy_unused<dlpack::Managed>(c, "dltensor"); });
}

void check_within(const Buffer& buffer, index offset, index bytes) {
    if (offset < 0 || bytes < 0 || offset + bytes > index(buffer.bytes())) {
        raise_value("buffer", "a range within " + std::to_string(buffer.bytes()) + " bytes",
                    std::to_string(bytes) + " at " + std::to_string(offset));
    }
}

char* at(const Buffer& buffer, index offset) { return static_cast<char*>(buffer.data()) + offset; }

// The calling thread's stream, after what was done to the buffer on its own.
Stream stream_after(const Buffer& buffer) {
    const Stream stream = current_stream();
    stream.wait_for(buffer.stream());
    return stream;
}

// Host memory, whatever this module's device is.
void check_contiguous(const py::array& a, const char* name) {
    if (!(a.flags() & py::array::c_style)) raise_value(name, "a C-contiguous array", "another");
}

}  // namespace

bool exported_here(const dlpack::ManagedVersioned& tensor) {
    return tensor.deleter == &give_back<dlpack::ManagedVersioned>;
}

void bind_buffer(py::module_& m) {
    py::class_<Buffer, std::shared_ptr<Buffer>>(m, "Buffer", py::module_local())
        .def(py::init([](index bytes) {
                 if (bytes < 0) raise_value("nbytes", "at least 0", std::to_string(bytes));
                 auto buffer = std::make_shared<Buffer>(current_stream(), std::size_t(bytes));
                 fill_zero(current_stream(), buffer->data(), buffer->bytes());
                 return buffer;
             }),
             py::arg("nbytes"))
        .def_property_readonly("nbytes", &Buffer::bytes)
        .def(
            "copy_from",
            [](Buffer& self, const py::array& x, index offset) {
                check_contiguous(x, "x");
                check_within(self, offset, x.nbytes());
                copy_from_host(stream_after(self), at(self, offset), x.data(), x.nbytes());
            },
            py::arg("x"), py::arg("offset") = 0)
        .def(
            "copy_to",
            [](const Buffer& self, py::array& out, index offset) {
                check_contiguous(out, "out");
                if (!out.writeable()) raise_value("out", "a writable array", "a read-only one");
                check_within(self, offset, out.nbytes());
                copy_to_host(stream_after(self), out.mutable_data(), at(self, offset),
                             out.nbytes());
            },
            py::arg("out"), py::arg("offset"))
        .def(
            "copy",
            [](const Buffer& self, index offset, index bytes) {
                check_within(self, offset, bytes);
                auto buffer = std::make_shared<Buffer>(current_stream(), std::size_t(bytes));
                copy_on_device(stream_after(self), buffer->data(), at(self, offset), bytes);
                self.stream().wait_for(buffer->stream());
                return buffer;
            },
            py::arg("offset"), py::arg("nbytes"))
        .def("dlpack", &to_dlpack, py::arg("offset"), py::arg("shape"), py::arg("strides"),
             py::arg("code"), py::arg("bits"), py::arg("versioned"), py::arg("stream") = py::none())
        .def("dlpack_device", [](const Buffer&) { return py::make_tuple(device_type(), 0); });
}

SP_END
