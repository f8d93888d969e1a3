// Arithmetic of long vectors.
#include "bindings/bind.hpp"
#include "bindings/overlap.hpp"
#include "bindings/streams.hpp"
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

// One call's vectors.
struct Vectors {
    Streams streams;

    View take(const py::object& object, const char* name, Access access) {
        View v = streams.look(object, name);
        check_contiguous(v, name);
        if (access == Access::write) check_writable(v, name);
        return v;
    }
};

void check_same_shape(const View& x, const View& y) {
    if (x.dtype != y.dtype) raise_type("y", "dtype " + x.dtype_name(), y.dtype_name());
    if (x.shape != y.shape) raise_value("y", "shape " + text(x.shape), text(y.shape));
}

}  // namespace

void bind_ops(py::module_& m) {
    m.def(
        "dot",
        [](const py::object& x_, const py::object& y_) {
            Vectors vectors;
            const View x = vectors.take(x_, "x", Access::read);
            const View y = vectors.take(y_, "y", Access::read);
            check_same_shape(x, y);
            return for_dtype(x, "x", [&](auto zero) {
                using T = decltype(zero);
                return vectors.streams.ask([&](const Stream& stream) {
                    return dot<T>(stream, x.size(), x.as<T>(), y.as<T>());
                });
            });
        },
        py::arg("x"), py::arg("y"));
    m.def(
        "axpy",
        [](double a, const py::object& x_, const py::object& y_) {
            Vectors vectors;
            const View x = vectors.take(x_, "x", Access::read);
            const View y = vectors.take(y_, "y", Access::write);
            check_same_shape(x, y);
            Overlaps().writes(y, "y").reads(x, "x").check();
            for_dtype(x, "x", [&](auto zero) {
                using T = decltype(zero);
                vectors.streams.go([&](const Stream& stream) {
                    axpy<T>(stream, x.size(), T(a), x.as<T>(), y.as<T>());
                });
            });
        },
        py::arg("a"), py::arg("x"), py::arg("y"));
    m.def(
        "scale",
        [](double a, const py::object& x_) {
            Vectors vectors;
            const View x = vectors.take(x_, "x", Access::write);
            for_dtype(x, "x", [&](auto zero) {
                using T = decltype(zero);
                vectors.streams.go(
                    [&](const Stream& stream) { scale<T>(stream, x.size(), T(a), x.as<T>()); });
            });
        },
        py::arg("a"), py::arg("x"));
}

SP_END
