#include "bindings/bind.hpp"
#include "core/errors.hpp"

namespace py = pybind11;

PYBIND11_MODULE(SADDLEPOINT_MODULE, m) {
    using namespace saddlepoint;
    // Exceptions are defined once, in Python, and shared by both modules.
    py::register_local_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const DeviceError& error) {
            const py::object type = py::module_::import("saddlepoint.errors").attr("DeviceError");
            PyErr_SetString(type.ptr(), error.what());
        }
    });
    m.attr("version") = SADDLEPOINT_VERSION;
    bind_device(m);
    bind_buffer(m);
    bind_ops(m);
    bind_optim(m);
    bind_batch_norm(m);
    bind_nn(m);
}
