// The layer of norm/batch_norm.hpp.
#include "norm/batch_norm.hpp"

#include "nn/layer.hpp"

SP_BEGIN

namespace {

template <class T>
class BatchNormLayer final : public Layer<T> {
   public:
    BatchNormLayer(const LayerSpec& spec, Plan<T>& plan, Signal<T>* input)
        : plan_(plan),
          x_(*input),
          n_(spec.inputs),
          affine_(spec.affine),
          weight_at_(spec.parameters),
          bias_at_(spec.parameters + n_),
          running_at_(spec.buffers),
          norm_{plan.rows, n_, plan.frozen, spec.eps, spec.momentum, spec.cumulative, {}, {},
                {},        {}, {},          {}} {
        this->output = plan.signal(n_, true);
        plan.couples_rows = true;
        for (T** p : {&norm_.statistics.mean, &norm_.statistics.r, &norm_.coupling.mean_dy,
                      &norm_.coupling.mean_h_dy, &zeros_, &ones_}) {
            plan.values.add(*p, n_);
        }
        plan.values.add(forward_partial_, norm_.scratch(1));
        if (plan.level != Level::product) return;
        for (T** p : {&norm_.tangent_coupling.mean_x, &norm_.tangent_coupling.mean_h_x,
                      &norm_.product_coupling.mean_u, &norm_.product_coupling.mean_h_u}) {
            plan.tangents.add(*p, n_);
        }
        plan.tangents.add(tangent_partial_, norm_.scratch(1));
    }

    void forward(const Context& context) override {
        if (plan_.first) {
            map<Fill>(context, {T(0)}, {1, 1, n_}, {per_column(zeros_)});
            map<Fill>(context, {T(1)}, {1, 1, n_}, {per_column(ones_)});
            context.sync();
        }
        batch_norm::Running<T> running{};
        if (plan_.buffers) {
            T* at = plan_.buffers + running_at_;
            running = {at, at + n_, at + 2 * n_};
        }
        norm(forward_partial_)
            .forward(context, x_.value, weight(), bias(), running, plan_.update_buffers, y().value);
        if (plan_.update_buffers && !plan_.frozen) {
            context.sync();  // every member has used the old count
            map<Increment>(context, {}, {1, 1, 1}, {per_column(running.count)});
        }
    }

    void backward(const Context& context) override {
        norm(forward_partial_)
            .backward(context, x_.value, weight(), y().gradient, x_.gradient,
                      own(plan_.theta.gradient, weight_at_), own(plan_.theta.gradient, bias_at_),
                      plan_.accumulate);
    }

    void forward_tangent(const Context& context, index directions) override {
        norm(tangent_partial_)
            .forward_tangent(context, directions, x_.value, x_.tangent, weight(),
                             tangent_of(weight_at_), tangent_of(bias_at_), stride(), y().tangent);
    }

    void backward_tangent(const Context& context, index directions) override {
        norm(tangent_partial_)
            .backward_tangent(context, directions, x_.value, x_.tangent, weight(),
                              tangent_of(weight_at_), stride(), y().gradient, y().gradient_tangent,
                              x_.gradient_tangent, own(plan_.theta.gradient_tangent, weight_at_),
                              own(plan_.theta.gradient_tangent, bias_at_), plan_.accumulate);
    }

   private:
    Signal<T>& y() const { return *this->output; }
    BatchNorm<T> norm(double* partial) const {
        BatchNorm<T> n = norm_;
        n.zeros = zeros_;
        n.partial = partial;
        return n;
    }
    const T* weight() const { return affine_ ? plan_.theta.value + weight_at_ : ones_; }
    const T* bias() const { return affine_ ? plan_.theta.value + bias_at_ : zeros_; }
    const T* tangent_of(index at) const { return affine_ ? plan_.theta.tangent + at : zeros_; }
    T* own(T* flat, index at) const { return affine_ ? flat + at : nullptr; }
    index stride() const { return affine_ ? plan_.theta.columns : 0; }

    using Fill = batch_norm::Fill<T>;
    using Increment = batch_norm::Increment<T>;

    Plan<T>& plan_;
    Signal<T>& x_;
    const index n_;
    const bool affine_;
    const index weight_at_, bias_at_, running_at_;
    BatchNorm<T> norm_;
    T *zeros_ = nullptr, *ones_ = nullptr;
    double *forward_partial_ = nullptr, *tangent_partial_ = nullptr;
};

}  // namespace

template <class T>
std::unique_ptr<Layer<T>> make_batch_norm(const LayerSpec& spec, Plan<T>& plan, Signal<T>* input) {
    return std::make_unique<BatchNormLayer<T>>(spec, plan, input);
}
template std::unique_ptr<Layer<float>> make_batch_norm(const LayerSpec&, Plan<float>&,
                                                       Signal<float>*);
template std::unique_ptr<Layer<double>> make_batch_norm(const LayerSpec&, Plan<double>&,
                                                        Signal<double>*);

SP_END
