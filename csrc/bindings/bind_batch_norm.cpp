// The four methods of batch normalization on arrays that Python has allocated.
#include <type_traits>

#include "bindings/array.hpp"
#include "bindings/bind.hpp"
#include "core/buffer.hpp"
#include "norm/batch_norm.hpp"

SP_BEGIN

namespace {

// The struct with its per-column arrays and scratch in memory of its own.
template <class T>
struct Bound {
    BatchNorm<T> norm;
    T* zeros = nullptr;
    double* partial = nullptr;
    Buffer memory;

    Bound(index rows, index columns, index directions, bool frozen, double eps, double momentum)
        : norm{rows, columns, frozen, eps, momentum, {}, {}, {}, {}, {}, {}} {
        Arena arena;
        for (T** p : {&norm.coupling.mean_dy, &norm.coupling.mean_h_dy, &zeros}) {
            arena.add(*p, columns);
        }
        for (T** p : {&norm.tangent_coupling.mean_x, &norm.tangent_coupling.mean_h_x,
                      &norm.product_coupling.mean_u, &norm.product_coupling.mean_h_u}) {
            arena.add(*p, directions * columns);
        }
        arena.add(partial, norm.scratch(directions));
        memory = Buffer(current_stream(), arena.bytes(1));
        arena.place(memory.data(), 1);
        fill_zero(current_stream(), zeros, columns * sizeof(T));
        norm.zeros = zeros;
        norm.partial = partial;
    }
    double work() const { return double(norm.rows) * double(norm.columns); }
};

template <class T>
void bind(py::module_& m, const char* suffix) {
    const auto name = [&](const char* base) { return std::string(base) + suffix; };
    static constexpr auto dtype = dtype_name<T>();
    const auto matrix = [](const py::object& o, const char* name) {
        Array a = borrow(o, name, Access::read, dtype);
        if (a.shape.size() != 2) raise_value(name, "shape (N, C)", text(a.shape));
        return a;
    };
    const auto like = [](const py::object& o, const char* name, Access access,
                         const std::vector<index>& shape) {
        return borrow(o, name, access, dtype, shape);
    };

    m.def(name("batch_norm_forward_").c_str(),
          [=](const py::object& x_, const py::object& weight_, const py::object& bias_,
              const py::object& running_mean_, const py::object& running_var_, bool training,
              double momentum, double eps, const py::object& y_, const py::object& mean_,
              const py::object& r_) {
              const Array x = matrix(x_, "x");
              const std::vector<index> columns{x.shape[1]};
              const Array weight = like(weight_, "weight", Access::read, columns);
              const Array bias = like(bias_, "bias", Access::read, columns);
              const Array y = like(y_, "out", Access::write, x.shape);
              const Array mean = like(mean_, "mean", Access::write, columns);
              const Array r = like(r_, "r", Access::write, columns);
              Array running_mean, running_var;
              if (!running_mean_.is_none()) {
                  const Access access = training ? Access::write : Access::read;
                  running_mean = like(running_mean_, "running_mean", access, columns);
                  running_var = like(running_var_, "running_var", access, columns);
              }
              // Evaluation is elementwise, so y may be x itself; nothing else may be shared.
              std::vector<std::pair<const char*, const Array*>> written{
                  {"out", &y}, {"mean", &mean}, {"r", &r}};
              std::vector<std::pair<const char*, const Array*>> read{{"weight", &weight},
                                                                     {"bias", &bias}};
              if (running_mean.data) {
                  auto& running = training ? written : read;
                  running.emplace_back("running_mean", &running_mean);
                  running.emplace_back("running_var", &running_var);
              }
              if (training || y.data != x.data) read.emplace_back("x", &x);
              refuse_overlap(written, read);
              const py::gil_scoped_release release;
              Bound<T> b(x.shape[0], x.shape[1], 1, !training, eps, momentum);
              b.norm.statistics = {mean.as<T>(), r.as<T>()};
              run(current_stream(), b.work(), [&](const Context& context) {
                  b.norm.forward(context, x.as<T>(), weight.as<T>(), bias.as<T>(),
                                 {running_mean.as<T>(), running_var.as<T>(), nullptr},
                                 training && running_mean.data != nullptr, y.as<T>());
              });
          });

    m.def(name("batch_norm_backward_").c_str(),
          [=](const py::object& dy_, const py::object& x_, const py::object& weight_,
              const py::object& mean_, const py::object& r_, bool frozen, const py::object& dx_,
              const py::object& dweight_, const py::object& dbias_) {
              const Array x = matrix(x_, "x");
              const std::vector<index> columns{x.shape[1]};
              const Array dy = like(dy_, "dy", Access::read, x.shape);
              const Array weight = like(weight_, "weight", Access::read, columns);
              const Array mean = like(mean_, "mean", Access::read, columns);
              const Array r = like(r_, "r", Access::read, columns);
              const Array dx = like(dx_, "dx", Access::write, x.shape);
              const Array dweight = like(dweight_, "dweight", Access::write, columns);
              const Array dbias = like(dbias_, "dbias", Access::write, columns);
              refuse_overlap({{"dx", &dx}, {"dweight", &dweight}, {"dbias", &dbias}},
                             {{"dy", &dy}, {"x", &x}, {"weight", &weight}});
              const py::gil_scoped_release release;
              Bound<T> b(x.shape[0], x.shape[1], 1, frozen, 0.0, 0.0);
              b.norm.statistics = {mean.as<T>(), r.as<T>()};
              run(current_stream(), b.work(), [&](const Context& context) {
                  b.norm.backward(context, x.as<T>(), weight.as<T>(), dy.as<T>(), dx.as<T>(),
                                  dweight.as<T>(), dbias.as<T>(), false);
              });
          });

    m.def(name("batch_norm_tangent_").c_str(),
          [=](const py::object& xt_, const py::object& weight_t_, const py::object& bias_t_,
              const py::object& x_, const py::object& weight_, const py::object& mean_,
              const py::object& r_, bool frozen, const py::object& yt_) {
              const Array x = matrix(x_, "x");
              const std::vector<index> columns{x.shape[1]};
              const Array xt = like(xt_, "x_tangent", Access::read, x.shape);
              const Array weight_t = like(weight_t_, "weight_tangent", Access::read, columns);
              const Array bias_t = like(bias_t_, "bias_tangent", Access::read, columns);
              const Array weight = like(weight_, "weight", Access::read, columns);
              const Array mean = like(mean_, "mean", Access::read, columns);
              const Array r = like(r_, "r", Access::read, columns);
              const Array yt = like(yt_, "y_tangent", Access::write, x.shape);
              refuse_overlap({{"y_tangent", &yt}}, {{"x_tangent", &xt}, {"x", &x}});
              const py::gil_scoped_release release;
              Bound<T> b(x.shape[0], x.shape[1], 1, frozen, 0.0, 0.0);
              b.norm.statistics = {mean.as<T>(), r.as<T>()};
              run(current_stream(), b.work(), [&](const Context& context) {
                  b.norm.forward_tangent(context, 1, x.as<T>(), xt.as<T>(), weight.as<T>(),
                                         weight_t.as<T>(), bias_t.as<T>(), 0, yt.as<T>());
              });
          });

    m.def(name("batch_norm_backward_tangent_").c_str(),
          [=](const py::object& dyt_, const py::object& dy_, const py::object& xt_,
              const py::object& weight_t_, const py::object& x_, const py::object& weight_,
              const py::object& mean_, const py::object& r_, bool frozen, const py::object& dxt_,
              const py::object& dweight_t_, const py::object& dbias_t_) {
              const Array x = matrix(x_, "x");
              const std::vector<index> columns{x.shape[1]};
              const Array dyt = like(dyt_, "dy_tangent", Access::read, x.shape);
              const Array dy = like(dy_, "dy", Access::read, x.shape);
              const Array xt = like(xt_, "x_tangent", Access::read, x.shape);
              const Array weight_t = like(weight_t_, "weight_tangent", Access::read, columns);
              const Array weight = like(weight_, "weight", Access::read, columns);
              const Array mean = like(mean_, "mean", Access::read, columns);
              const Array r = like(r_, "r", Access::read, columns);
              const Array dxt = like(dxt_, "dx_tangent", Access::write, x.shape);
              const Array dweight_t = like(dweight_t_, "dweight_tangent", Access::write, columns);
              const Array dbias_t = like(dbias_t_, "dbias_tangent", Access::write, columns);
              refuse_overlap({{"dx_tangent", &dxt},
                              {"dweight_tangent", &dweight_t},
                              {"dbias_tangent", &dbias_t}},
                             {{"dy_tangent", &dyt}, {"dy", &dy}, {"x_tangent", &xt}, {"x", &x}});
              const py::gil_scoped_release release;
              const Stream stream = current_stream();
              Bound<T> b(x.shape[0], x.shape[1], 1, frozen, 0.0, 0.0);
              b.norm.statistics = {mean.as<T>(), r.as<T>()};
              // The means of the passes that these tangents belong to come first.
              Buffer spare(stream, std::size_t(x.bytes()));
              run(stream, b.work(), [&](const Context& context) {
                  b.norm.backward(context, x.as<T>(), weight.as<T>(), dy.as<T>(), nullptr, nullptr,
                                  nullptr, false);
                  b.norm.forward_tangent(context, 1, x.as<T>(), xt.as<T>(), weight.as<T>(),
                                         weight_t.as<T>(), b.zeros, 0,
                                         static_cast<T*>(spare.data()));
                  b.norm.backward_tangent(context, 1, x.as<T>(), xt.as<T>(), weight.as<T>(),
                                          weight_t.as<T>(), 0, dy.as<T>(), dyt.as<T>(), dxt.as<T>(),
                                          dweight_t.as<T>(), dbias_t.as<T>(), false);
              });
          });
}

}  // namespace

void bind_batch_norm(py::module_& m) {
    bind<float>(m, "float32");
    bind<double>(m, "float64");
}

SP_END
