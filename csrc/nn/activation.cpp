// y = a(x), elementwise: the slope is kept from the forward pass, the curvature from the backward.
#include <stdexcept>

#include "nn/layer.hpp"
#include "nn/pointwise.hpp"

SP_BEGIN

namespace {

template <class A, class T>
class Activation final : public Layer<T> {
   public:
    Activation(A a, Plan<T>& plan, Signal<T>* input) : a_(a), plan_(plan), x_(*input) {
        this->output = plan.signal(x_.columns, true);
        plan.values.add(slope_, plan.rows * x_.columns);
        if (curved()) plan.values.add(curvature_, plan.rows * x_.columns);
    }

    void forward(const Context& context) override {
        map<pointwise::Activate<A, T>>(context, {a_}, extent(1),
                                       {all(y().value), all(slope_), all(x_.value)});
    }
    void backward(const Context& context) override {
        if (x_.gradient == nullptr) return;
        map<pointwise::Multiply<T>>(context, {}, extent(1),
                                    {all(x_.gradient), all(slope_), all(y().gradient)});
        if (curved()) {
            map<pointwise::Curve<A, T>>(context, {a_}, extent(1),
                                        {all(curvature_), all(x_.value), all(y().gradient)});
        }
    }
    void forward_tangent(const Context& context, index directions) override {
        if (x_.tangent == nullptr) {  // the input is data: nothing moves
            map<pointwise::Scale<T>>(context, {T(0)}, extent(directions),
                                     {each_of(y().tangent), all(slope_)});
            return;
        }
        map<pointwise::Multiply<T>>(context, {}, extent(directions),
                                    {each_of(y().tangent), all(slope_), each_of(x_.tangent)});
    }
    void backward_tangent(const Context& context, index directions) override {
        if (x_.gradient_tangent == nullptr) return;
        if (curved()) {
            map<pointwise::MultiplyAdd<T>>(
                context, {}, extent(directions),
                {each_of(x_.gradient_tangent), all(slope_), each_of(y().gradient_tangent),
                 all(curvature_), each_of(x_.tangent)});
        } else {
            map<pointwise::Multiply<T>>(
                context, {}, extent(directions),
                {each_of(x_.gradient_tangent), all(slope_), each_of(y().gradient_tangent)});
        }
    }

   private:
    Signal<T>& y() const { return *this->output; }
    bool curved() const { return plan_.level == Level::product && !A::piecewise_linear; }
    Extent extent(index directions) const { return {directions, plan_.rows, x_.columns}; }
    Operand<T> all(const T* x) const { return shared(x, x_.columns); }
    Operand<T> each_of(const T* x) const { return each(x, plan_.rows, x_.columns); }

    A a_;
    Plan<T>& plan_;
    Signal<T>& x_;
    T *slope_ = nullptr, *curvature_ = nullptr;
};

template <class A>
A with(const LayerSpec&) {
    return {};
}
template <>
LeakyReLU with<LeakyReLU>(const LayerSpec& spec) {
    return {spec.negative_slope};
}

}  // namespace

template <class T>
std::unique_ptr<Layer<T>> make_activation(const LayerSpec& spec, Plan<T>& plan, Signal<T>* input) {
#define SP_MAKE(A)                                                             \
    if (spec.kind == A::name) {                                                \
        return std::make_unique<Activation<A, T>>(with<A>(spec), plan, input); \
    }
    SP_ACTIVATIONS(SP_MAKE)
#undef SP_MAKE
    throw std::invalid_argument("kind: expected the name of a layer, got " + spec.kind);
}
template std::unique_ptr<Layer<float>> make_activation(const LayerSpec&, Plan<float>&,
                                                       Signal<float>*);
template std::unique_ptr<Layer<double>> make_activation(const LayerSpec&, Plan<double>&,
                                                        Signal<double>*);

SP_END
