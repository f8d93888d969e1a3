// Arithmetic of long vectors.
#include "bindings/bind.hpp"
#include "bindings/overlap.hpp"
#include "ops/vector.hpp"

SP_BEGIN

namespace {

// Calls f with a value of the scalar type that `dtype` names.
template <class F>
auto for_dtype(const View& a, const char* name, F f) {
    if (a.dtype == dlpack::float32) return f(float());
    if (a.dtype == dlpack::float64) return f(double());
    raise_type(name, "dtype float32 or float64", a.dtype_name());
}

void check_same_shape(const View& x, const View& y) {
    if (x.dtype != y.dtype) raise_type("y", "dtype " + x.dtype_name(), y.dtype_name());
    if (x.shape != y.shape) raise_value("y", "shape " + text(x.shape), text(y.shape));
}

}  // namespace

void bind_ops(py::module_& m) {
    m.def(
        "dot",
        [](const py::object& x_, const py::object& y_) {
            const View x = borrow(x_, "x", Access::read), y = borrow(y_, "y", Access::read);
            check_same_shape(x, y);
            return for_dtype(x, "x", [&](auto zero) {
                using T = decltype(zero);
                const py::gil_scoped_release release;
                return dot<T>(current_stream(), x.size(), x.as<T>(), y.as<T>());
            });
        },
        py::arg("x"), py::arg("y"));
    m.def(
        "axpy",
        [](double a, const py::object& x_, const py::object& y_) {
            const View x = borrow(x_, "x", Access::read), y = borrow(y_, "y", Access::write);
            check_same_shape(x, y);
            Overlaps().writes(y, "y").reads(x, "x").check();
            for_dtype(x, "x", [&](auto zero) {
                using T = decltype(zero);
                const py::gil_scoped_release release;
                axpy<T>(current_stream(), x.size(), T(a), x.as<T>(), y.as<T>());
            });
        },
        py::arg("a"), py::arg("x"), py::arg("y"));
    m.def(
        "scale",
        [](double a, const py::object& x_) {
            const View x = borrow(x_, "x", Access::write);
            for_dtype(x, "x", [&](auto zero) {
                using T = decltype(zero);
                const py::gil_scoped_release release;
                scale<T>(current_stream(), x.size(), T(a), x.as<T>());
            });
        },
        py::arg("a"), py::arg("x"));
}

SP_END
