// Networks bound to rows: evaluation, products with the Hessian, and the four methods for tests.
#include <pybind11/stl.h>

#include <atomic>

#include "bindings/bind.hpp"
#include "bindings/overlap.hpp"
#include "core/activations.hpp"
#include "core/errors.hpp"
#include "nn/network.hpp"

SP_BEGIN

namespace {

LayerSpec layer_spec(const py::dict& d) {
    LayerSpec s;
    const auto take = [&](const char* key, auto& value) {
        if (d.contains(key)) value = py::cast<std::decay_t<decltype(value)>>(d[key]);
    };
    take("kind", s.kind);
    take("inputs", s.inputs);
    take("outputs", s.outputs);
    take("parameters", s.parameters);
    take("buffers", s.buffers);
    take("bias", s.bias);
    take("affine", s.affine);
    take("eps", s.eps);
    take("momentum", s.momentum);
    take("cumulative", s.cumulative);
    take("negative_slope", s.negative_slope);
    if (d.contains("children")) {
        for (const auto& child : d["children"]) {
            s.children.push_back(layer_spec(py::cast<py::dict>(child)));
        }
    }
    return s;
}

NetworkSpec network_spec(const py::dict& d) {
    return {layer_spec(py::cast<py::dict>(d["layers"])),
            py::cast<std::string>(d["loss"]),
            py::cast<index>(d["inputs"]),
            py::cast<index>(d["outputs"]),
            py::cast<index>(d["parameters"]),
            py::cast<index>(d["buffers"])};
}

Level level_of(const std::string& name) {
    if (name == "value") return Level::value;
    if (name == "gradient") return Level::gradient;
    if (name == "product") return Level::product;
    raise_value("level", "value, gradient or product", name);
}

// Scratch, and whether a call is using it: calls release the GIL, so another thread may come in.
struct BoundScratch {
    std::shared_ptr<Scratch> memory = std::make_shared<Scratch>();
    std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

class Alone {
   public:
    explicit Alone(BoundScratch& scratch) : busy_(scratch.busy) {
        if (busy_.test_and_set(std::memory_order_acquire)) {
            raise_value("pass", "one call at a time", "two threads");
        }
    }
    ~Alone() { busy_.clear(std::memory_order_release); }
    Alone(const Alone&) = delete;
    Alone& operator=(const Alone&) = delete;

   private:
    std::atomic_flag& busy_;
};

// A call of a pass: alone, and on the stream of its thread, whose scratch nobody else works in.
template <class T>
class Turn {
   public:
    Turn(BoundScratch& scratch, Pass<T>& pass) : alone_(scratch), pass_(pass) {
        pass_.work_on(current_stream());
    }
    // A broken device is told of by the next call.
    ~Turn() {
        try {
            pass_.work_at_home();
        } catch (const DeviceError&) {
        }
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    const Alone alone_;
    Pass<T>& pass_;
};

// A pass with the arrays it points into: they live as long as products are asked for.
template <class T>
class BoundPass {
   public:
    BoundPass(const py::dict& spec, index rows, const std::string& level, bool frozen,
              bool input_gradient, std::shared_ptr<BoundScratch> scratch)
        : spec_(network_spec(spec)),
          rows_(rows),
          level_(level_of(level)),
          scratch_(scratch ? std::move(scratch) : std::make_shared<BoundScratch>()),
          pass_(current_stream(), spec_, rows, level_, frozen, input_gradient, scratch_->memory) {}

    std::size_t bytes() const { return pass_.bytes(); }
    std::size_t tangent_bytes(index directions) const { return pass_.tangent_bytes(directions); }

    void evaluate(const py::object& x, const py::object& targets, const py::object& indices,
                  const py::object& theta, const py::object& buffers, bool update_buffers,
                  double weight, const py::object& gradient, bool accumulate) {
        const Turn<T> turn(*scratch_, pass_);
        View x_ = borrow(x, "x", Access::read, dtype);
        if (x_.shape.size() != 2 || x_.shape[1] != spec_.inputs ||
            (indices.is_none() && x_.shape[0] != rows_)) {
            raise_value("x", "shape " + text({rows_, spec_.inputs}), text(x_.shape));
        }
        const index n = x_.shape[0];
        typename Pass<T>::Batch batch{x_.template as<T>(), {}, nullptr};
        View targets_, indices_, buffers_, gradient_;
        if (spec_.loss == "cross_entropy") {
            targets_ = borrow(targets, "y", Access::read, dlpack::int32, {n});
            batch.targets.labels = targets_.template as<std::int32_t>();
        } else if (!spec_.loss.empty()) {
            targets_ = borrow(targets, "y", Access::read, dtype, {n, spec_.outputs});
            batch.targets.values = targets_.template as<T>();
        }
        if (!indices.is_none()) {
            indices_ = borrow(indices, "indices", Access::read, dlpack::int64, {rows_});
            batch.indices = indices_.template as<std::int64_t>();
        }
        View theta_ = borrow(theta, "theta", Access::read, dtype, {spec_.parameters});
        if (!buffers.is_none()) {
            buffers_ = borrow(buffers, "buffers", update_buffers ? Access::write : Access::read,
                              dtype, {spec_.buffers});
        }
        const bool wants_gradient = level_ != Level::value && !spec_.loss.empty();
        if (wants_gradient) {
            gradient_ = borrow(gradient, "gradient", Access::write, dtype, {spec_.parameters});
            Overlaps().writes(gradient_, "gradient").reads(theta_, "theta").reads(x_, "x").check();
        }
        evaluated_ = false;
        {
            const py::gil_scoped_release release;
            pass_.evaluate(batch, theta_.template as<T>(), buffers_.template as<T>(),
                           update_buffers, weight, gradient_.template as<T>(), accumulate);
        }
        evaluated_ = true;
        x_kept_ = std::move(x_);
        theta_kept_ = std::move(theta_);
        buffers_kept_ = std::move(buffers_);
    }

    // Lets go of the arrays of the last evaluation; its own memory stays for the next.
    void release() {
        const Alone alone(*scratch_);
        evaluated_ = false;
        x_kept_ = theta_kept_ = buffers_kept_ = v_kept_ = View{};
    }

    double loss() {
        const Turn<T> turn(*scratch_, pass_);
        require_evaluated();
        require_loss();
        return pass_.loss();
    }

    void output(const py::object& out) {
        const Turn<T> turn(*scratch_, pass_);
        require_evaluated();
        const View out_ = borrow(out, "out", Access::write, dtype, {rows_, spec_.outputs});
        copy_on_device(current_stream(), out_.data, pass_.output(), out_.bytes());
    }

    // v and out are (n) or (directions, n).
    void product(const py::object& v, const py::object& out, bool accumulate) {
        const Turn<T> turn(*scratch_, pass_);
        require_evaluated();
        require_loss();
        require_level(Level::product);
        const View v_ = directions(v, "v", Access::read, spec_.parameters);
        const View out_ = directions(out, "out", Access::write, spec_.parameters);
        if (v_.shape != out_.shape) raise_value("out", "shape " + text(v_.shape), text(out_.shape));
        Overlaps().writes(out_, "out").reads(v_, "v").reads(theta_kept_, "theta").check();
        if (v_.size() == 0) return;
        const py::gil_scoped_release release;
        pass_.product(v_.template as<T>(), count(v_), out_.template as<T>(), accumulate);
    }

    void backward(const py::object& dy, const py::object& gradient, const py::object& dx) {
        const Turn<T> turn(*scratch_, pass_);
        require_evaluated();
        require_level(Level::gradient);
        const View dy_ = borrow(dy, "dy", Access::read, dtype, {rows_, spec_.outputs});
        const View g = borrow(gradient, "gradient", Access::write, dtype, {spec_.parameters});
        const View dx_ = borrow(dx, "dx", Access::write, dtype, {rows_, spec_.inputs});
        pass_.backward(dy_.template as<T>(), g.template as<T>(), dx_.template as<T>());
    }

    void forward_tangent(const py::object& v, const py::object& xt, const py::object& yt) {
        const Turn<T> turn(*scratch_, pass_);
        require_evaluated();
        require_level(Level::product);
        const View v_ = directions(v, "v", Access::read, spec_.parameters);
        const index k = count(v_);
        const View xt_ = borrow(xt, "xt", Access::read, dtype, {k, rows_, spec_.inputs});
        const View yt_ = borrow(yt, "yt", Access::write, dtype, {k, rows_, spec_.outputs});
        pass_.forward_tangent(v_.template as<T>(), xt_.template as<T>(), k, yt_.template as<T>());
        v_kept_ = v_;
    }

    void backward_tangent(const py::object& dyt, const py::object& out, const py::object& dxt) {
        const Turn<T> turn(*scratch_, pass_);
        require_evaluated();
        require_level(Level::product);
        const View out_ = directions(out, "out", Access::write, spec_.parameters);
        const index k = count(out_);
        if (v_kept_.data == nullptr || count(v_kept_) != k) {
            raise_value("out", "as many directions as the forward tangent", std::to_string(k));
        }
        const View dyt_ = borrow(dyt, "dyt", Access::read, dtype, {k, rows_, spec_.outputs});
        const View dxt_ = borrow(dxt, "dxt", Access::write, dtype, {k, rows_, spec_.inputs});
        pass_.backward_tangent(dyt_.template as<T>(), k, out_.template as<T>(),
                               dxt_.template as<T>());
    }

   private:
    static constexpr auto dtype = type_of<T>();

    void require_evaluated() const {
        if (!evaluated_) throw py::value_error("pass: expected evaluate() first, got none");
    }
    void require_loss() const {
        if (spec_.loss.empty()) raise_value("loss", "a loss", "none");
    }
    void require_level(Level least) const {
        if (level_ < least) {
            raise_value("level", least == Level::product ? "product" : "gradient or product",
                        "a lower one");
        }
    }
    static index count(const View& a) { return a.shape.size() == 1 ? 1 : a.shape[0]; }
    static View directions(const py::object& o, const char* name, Access access, index columns) {
        View a = borrow(o, name, access, dtype);
        const bool fits = (a.shape.size() == 1 || a.shape.size() == 2) && a.shape.back() == columns;
        if (!fits) raise_value(name, "shape (k, " + std::to_string(columns) + ")", text(a.shape));
        return a;
    }

    NetworkSpec spec_;
    index rows_;
    Level level_;
    std::shared_ptr<BoundScratch> scratch_;
    Pass<T> pass_;
    bool evaluated_ = false;
    View x_kept_, theta_kept_, buffers_kept_, v_kept_;
};

template <class T>
void bind_pass(py::module_& m, const char* name) {
    using P = BoundPass<T>;
    py::class_<P>(m, name, py::module_local())
        .def(py::init<const py::dict&, index, const std::string&, bool, bool,
                      std::shared_ptr<BoundScratch>>(),
             py::arg("spec"), py::arg("rows"), py::arg("level"), py::arg("frozen"),
             py::arg("input_gradient") = false, py::arg("scratch") = nullptr)
        .def_property_readonly("nbytes", &P::bytes)
        .def("tangent_nbytes", &P::tangent_bytes, py::arg("directions"))
        .def("evaluate", &P::evaluate, py::arg("x"), py::arg("y"), py::arg("indices"),
             py::arg("theta"), py::arg("buffers"), py::arg("update_buffers"), py::arg("weight"),
             py::arg("gradient"), py::arg("accumulate"))
        .def("release", &P::release)
        .def("loss", &P::loss)
        .def("output", &P::output, py::arg("out"))
        .def("product", &P::product, py::arg("v"), py::arg("out"), py::arg("accumulate"))
        .def("backward", &P::backward, py::arg("dy"), py::arg("gradient"), py::arg("dx"))
        .def("forward_tangent", &P::forward_tangent, py::arg("v"), py::arg("xt"), py::arg("yt"))
        .def("backward_tangent", &P::backward_tangent, py::arg("dyt"), py::arg("out"),
             py::arg("dxt"));
}

}  // namespace

void bind_nn(py::module_& m) {
    py::class_<BoundScratch, std::shared_ptr<BoundScratch>>(m, "Scratch", py::module_local())
        .def(py::init<>());
    bind_pass<float>(m, "Pass_float32");
    bind_pass<double>(m, "Pass_float64");
#define SP_NAME(A) A::name,
    m.attr("activations") = py::cast(std::vector<std::string>{SP_ACTIVATIONS(SP_NAME)});
#undef SP_NAME
}

SP_END
