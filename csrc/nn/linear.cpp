// y = x W^T + b, with W (outputs, inputs) as in PyTorch.
#include "nn/layer.hpp"
#include "nn/pointwise.hpp"
#include "ops/gemm.hpp"
#include "ops/reduce.hpp"

SP_BEGIN

namespace {

template <class T>
class Linear final : public Layer<T> {
   public:
    Linear(const LayerSpec& spec, Plan<T>& plan, Signal<T>* input)
        : plan_(plan),
          x_(*input),
          in_(spec.inputs),
          out_(spec.outputs),
          bias_(spec.bias),
          weight_at_(spec.parameters),
          bias_at_(spec.parameters + in_ * out_) {
        this->output = plan.signal(out_, true);
        if (plan.level == Level::value) return;
        const index blocks = column_blocks(in_);
        for (index b = 0; b < blocks; ++b) {
            const Range columns{in_ * b / blocks, in_ * (b + 1) / blocks};
            plan.jobs.push_back(
                {double(plan.rows) * out_ * columns.size(),
                 [=](const Context& c) { weight_gradient(c, columns); },
                 [=](const Context& c, Range some) { weight_product(c, columns, some); }});
        }
        if (!bias_) return;
        plan.jobs.push_back({double(plan.rows) * out_,
                             [=](const Context& c) {
                                 sum_rows(c, {1, rows(), out_}, shared(y().gradient, out_),
                                          plan_.accumulate, part(plan_.theta.gradient, bias_at_));
                             },
                             [=](const Context& c, Range some) {
                                 sum_rows(c, {some.size(), rows(), out_},
                                          of_each(y().gradient_tangent, out_).from(some.begin, 0),
                                          plan_.accumulate, product(bias_at_).from(some.begin, 0));
                             }});
    }

    void forward(const Context& context) override {
        start(context, {1, rows(), out_}, y().value, plan_.theta.value, 0);
        for_owned_slabs(context, rows(), [&](index, Range r) {
            product_with(context, 1, r, shared(x_.value, in_), weight(), start_scale(),
                         shared(y().value, out_));
        });
    }

    void backward(const Context& context) override {
        if (x_.gradient == nullptr) return;
        for_owned_slabs(context, rows(), [&](index, Range r) {
            product_back(context, 1, r, shared(y().gradient, out_), weight(), T(0),
                         shared(x_.gradient, in_));
        });
    }

    // y' = x W'^T + x' W^T + b'
    void forward_tangent(const Context& context, index directions) override {
        start(context, {directions, rows(), out_}, y().tangent, plan_.theta.tangent,
              plan_.theta.columns);
        const Operand<T> yt = of_each(y().tangent, out_);
        for_owned_slabs(context, rows(), [&](index, Range r) {
            product_with(context, directions, r, shared(x_.value, in_), weight_tangent(),
                         start_scale(), yt);
            if (x_.tangent) {
                product_with(context, directions, r, of_each(x_.tangent, in_), weight(), T(1), yt);
            }
        });
    }

    // dx' = dy' W + dy W'
    void backward_tangent(const Context& context, index directions) override {
        if (x_.gradient_tangent == nullptr) return;
        const Operand<T> dxt = of_each(x_.gradient_tangent, in_);
        for_owned_slabs(context, rows(), [&](index, Range r) {
            product_back(context, directions, r, of_each(y().gradient_tangent, out_), weight(),
                         T(0), dxt);
            product_back(context, directions, r, shared(y().gradient, out_), weight_tangent(), T(1),
                         dxt);
        });
    }

   private:
    Signal<T>& y() const { return *this->output; }
    index rows() const { return plan_.rows; }
    Operand<T> of_each(const T* x, index columns) const { return each(x, rows(), columns); }
    // Of the parameters, and of what there is of them for each direction.
    Operand<T> part(T* theta, index at) const { return {theta + at, 0, in_}; }
    Operand<T> part_of_each(T* theta, index at) const {
        return {theta + at, plan_.theta.columns, in_};
    }
    Operand<T> weight() const { return part(plan_.theta.value, weight_at_); }
    Operand<T> weight_tangent() const { return part_of_each(plan_.theta.tangent, weight_at_); }
    Operand<T> product(index at) const { return part_of_each(plan_.theta.gradient_tangent, at); }

    // The bias goes in first, so that the product adds to it in the same pass over y.
    T start_scale() const { return bias_ ? T(1) : T(0); }
    void start(const Context& context, const Extent& extent, T* y, const T* theta, index stride) {
        if (!bias_) return;
        map<pointwise::Copy<T>>(context, {}, extent,
                                {each(y, rows(), out_), per_column(theta + bias_at_, stride)});
    }

    // y[r] = x[r] W^T + beta y[r]
    void product_with(const Context& context, index directions, Range r, const Operand<T>& x,
                      const Operand<T>& weight, T beta, const Operand<T>& y) const {
        gemm(context, directions, Transpose::no, Transpose::yes, r.size(), out_, in_,
             x.from(0, r.begin), weight, beta, y.from(0, r.begin));
    }
    // dx[r] = dy[r] W + beta dx[r]
    void product_back(const Context& context, index directions, Range r, const Operand<T>& dy,
                      const Operand<T>& weight, T beta, const Operand<T>& dx) const {
        gemm(context, directions, Transpose::no, Transpose::no, r.size(), in_, out_,
             dy.from(0, r.begin), weight, beta, dx.from(0, r.begin));
    }
    // dW[:, columns] = dy^T x[:, columns] + beta dW[:, columns]
    void outer(const Context& context, index directions, Range columns, const Operand<T>& dy,
               Operand<T> x, T beta, Operand<T> gradient) const {
        x.data += columns.begin, gradient.data += columns.begin;
        gemm(context, directions, Transpose::yes, Transpose::no, out_, columns.size(), rows(), dy,
             x, beta, gradient);
    }
    T gradient_scale() const { return plan_.accumulate ? T(1) : T(0); }
    void weight_gradient(const Context& context, Range columns) const {
        outer(context, 1, columns, shared(y().gradient, out_), shared(x_.value, in_),
              gradient_scale(), part(plan_.theta.gradient, weight_at_));
    }
    // dW' = dy'^T x + dy^T x'
    void weight_product(const Context& context, Range columns, Range some) const {
        const Operand<T> to = product(weight_at_).from(some.begin, 0);
        outer(context, some.size(), columns,
              of_each(y().gradient_tangent, out_).from(some.begin, 0), shared(x_.value, in_),
              gradient_scale(), to);
        if (x_.tangent) {
            outer(context, some.size(), columns, shared(y().gradient, out_),
                  of_each(x_.tangent, in_).from(some.begin, 0), T(1), to);
        }
    }

    Plan<T>& plan_;
    Signal<T>& x_;
    const index in_, out_;
    const bool bias_;
    const index weight_at_, bias_at_;
};

}  // namespace

template <class T>
std::unique_ptr<Layer<T>> make_linear(const LayerSpec& spec, Plan<T>& plan, Signal<T>* input) {
    return std::make_unique<Linear<T>>(spec, plan, input);
}
template std::unique_ptr<Layer<float>> make_linear(const LayerSpec&, Plan<float>&, Signal<float>*);
template std::unique_ptr<Layer<double>> make_linear(const LayerSpec&, Plan<double>&,
                                                    Signal<double>*);

SP_END
