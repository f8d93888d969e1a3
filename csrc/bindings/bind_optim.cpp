// A planned step: tensors and states are checked and laid out once, gradients at every step.
#include <memory>

#include "bindings/array.hpp"
#include "bindings/bind.hpp"
#include "optim/rules.hpp"
#include "optim/update.hpp"

SP_BEGIN

namespace {

// A rule on a list of tensors, whatever the scalar type.
class Planned {
   public:
    virtual ~Planned() = default;
    virtual void step(const py::sequence& gradients, const std::vector<double>& hyper,
                      index step) = 0;
};

template <class R>
class PlannedRule final : public Planned {
    using T = typename R::scalar;

   public:
    PlannedRule(std::vector<Array> params, std::vector<std::vector<Array>> states)
        : params_(std::move(params)), states_(std::move(states)), tensors_(params_.size()) {
        for (std::size_t i = 0; i < params_.size(); ++i) {
            tensors_[i] = {params_[i].template as<T>(), nullptr, {}, params_[i].size()};
            for (int s = 0; s < R::states; ++s)
                tensors_[i].state[s] = states_[i][s].template as<T>();
        }
    }

    void step(const py::sequence& gradients, const std::vector<double>& hyper,
              index step) override {
        if (gradients.size() != params_.size()) {
            raise_value("grads", std::to_string(params_.size()) + " arrays",
                        std::to_string(gradients.size()));
        }
        std::vector<Array> borrowed;
        borrowed.reserve(params_.size());
        std::vector<std::pair<const char*, const Array*>> written, read;
        for (std::size_t i = 0; i < params_.size(); ++i) {
            borrowed.push_back(
                borrow(gradients[i], "grads", Access::read, dtype_name<T>(), params_[i].shape));
            written.emplace_back("params", &params_[i]);
            for (const Array& s : states_[i]) written.emplace_back("state", &s);
        }
        for (const Array& g : borrowed) read.emplace_back("grads", &g);
        refuse_overlap(written, read);
        for (std::size_t i = 0; i < params_.size(); ++i) {
            tensors_[i].gradient = borrowed[i].template as<T>();
        }
        const py::gil_scoped_release release;
        update(current_stream(), R(hyper.data(), step), tensors_);
    }

   private:
    std::vector<Array> params_;
    std::vector<std::vector<Array>> states_;
    std::vector<Tensor<T>> tensors_;
};

class Update {
   public:
    Update(const std::string& rule, const py::sequence& params, const py::sequence& states) {
        const std::string dtype =
            params.size() ? borrow(params[0], "params", Access::read).dtype : "float32";
        if (dtype != "float32" && dtype != "float64") {
            raise_type("params", "dtype float32 or float64", dtype);
        }
        std::vector<Array> p;
        std::vector<std::vector<Array>> s(params.size());
        std::vector<std::pair<const char*, const Array*>> written;
        for (const auto& param : params) {
            p.push_back(borrow(param, "params", Access::write, dtype));
        }
        for (std::size_t i = 0; i < p.size(); ++i) {
            for (const auto& state : py::cast<py::sequence>(states[i])) {
                s[i].push_back(borrow(state, "state", Access::write, dtype, p[i].shape));
            }
        }
        for (std::size_t i = 0; i < p.size(); ++i) {
            written.emplace_back("params", &p[i]);
            for (const Array& state : s[i]) written.emplace_back("state", &state);
        }
        refuse_overlap(written, {});
        const auto make = [&](auto rule32, auto rule64) {
            using R32 = typename decltype(rule32)::type;
            using R64 = typename decltype(rule64)::type;
            for (const auto& list : s) {
                if (list.size() != R32::states) {
                    raise_value("state", std::to_string(R32::states) + " arrays a parameter",
                                std::to_string(list.size()));
                }
            }
            names_.assign(std::begin(R32::hyper), std::end(R32::hyper));
            if (dtype == "float32") {
                planned_ = std::make_unique<PlannedRule<R32>>(std::move(p), std::move(s));
            } else {
                planned_ = std::make_unique<PlannedRule<R64>>(std::move(p), std::move(s));
            }
        };
#define SP_MAKE(R) \
    if (!planned_ && rule == R<float>::name) make(Type<R<float>>{}, Type<R<double>>{});
        SP_RULES(SP_MAKE)
#undef SP_MAKE
        if (!planned_) raise_value("rule", "the name of an update rule", rule);
    }

    void step(const py::sequence& gradients, const py::dict& hyper, index step) const {
        std::vector<double> values;
        for (const char* name : names_) {
            if (!hyper.contains(name))
                raise_value("hyper", std::string("a value of ") + name, "none");
            values.push_back(py::cast<double>(hyper[name]));
        }
        if (step < 1) raise_value("step", "at least 1", std::to_string(step));
        planned_->step(gradients, values, step);
    }

   private:
    template <class R>
    struct Type {
        using type = R;
    };
    std::vector<const char*> names_;
    std::unique_ptr<Planned> planned_;
};

}  // namespace

void bind_optim(py::module_& m) {
    py::class_<Update>(m, "Update", py::module_local())
        .def(py::init<const std::string&, const py::sequence&, const py::sequence&>(),
             py::arg("rule"), py::arg("params"), py::arg("states"))
        .def("step", &Update::step, py::arg("grads"), py::arg("hyper"), py::arg("step"));
    py::dict states;
#define SP_STATES(R) states[R<float>::name] = R<float>::states;
    SP_RULES(SP_STATES)
#undef SP_STATES
    m.attr("rules") = states;
}

SP_END
