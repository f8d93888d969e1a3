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
                 [=](const Context& c, index d) { weight_product(c, columns, d); }});
        }
        if (!bias_) return;
        plan.jobs.push_back({double(plan.rows) * out_,
                             [=](const Context& c) {
                                 sum_rows(c, rows(), {0, out_}, y().gradient, out_,
                                          plan_.accumulate, plan_.theta.gradient + bias_at_);
                             },
                             [=](const Context& c, index d) {
                                 sum_rows(c, rows(), {0, out_}, of(y().gradient_tangent, d, out_),
                                          out_, plan_.accumulate, product(d) + bias_at_);
                             }});
    }

    void forward(const Context& context) override {
        start(context, {1, rows(), out_}, y().value, plan_.theta.value, 0);
        for_owned_slabs(context, rows(), [&](index, Range r) {
            product_with(context, r, x_.value, plan_.theta.value, start_scale(), y().value);
        });
    }

    void backward(const Context& context) override {
        if (x_.gradient == nullptr) return;
        for_owned_slabs(context, rows(), [&](index, Range r) {
            product_back(context, r, y().gradient, plan_.theta.value, T(0), x_.gradient);
        });
    }

    // y' = x W'^T + x' W^T + b'
    void forward_tangent(const Context& context, index directions) override {
        start(context, {directions, rows(), out_}, y().tangent, plan_.theta.tangent,
              plan_.theta.columns);
        for (index d = 0; d < directions; ++d) {
            T* yt = of(y().tangent, d, out_);
            for_owned_slabs(context, rows(), [&](index, Range r) {
                product_with(context, r, x_.value, direction(d), start_scale(), yt);
                if (x_.tangent) {
                    product_with(context, r, of(x_.tangent, d, in_), plan_.theta.value, T(1), yt);
                }
            });
        }
    }

    // dx' = dy' W + dy W'
    void backward_tangent(const Context& context, index directions) override {
        if (x_.gradient_tangent == nullptr) return;
        for (index d = 0; d < directions; ++d) {
            T* dxt = of(x_.gradient_tangent, d, in_);
            for_owned_slabs(context, rows(), [&](index, Range r) {
                product_back(context, r, of(y().gradient_tangent, d, out_), plan_.theta.value, T(0),
                             dxt);
                product_back(context, r, y().gradient, direction(d), T(1), dxt);
            });
        }
    }

   private:
    Signal<T>& y() const { return *this->output; }
    index rows() const { return plan_.rows; }
    T* of(T* x, index d, index columns) const { return x + d * rows() * columns; }
    const T* direction(index d) const { return plan_.theta.tangent + d * plan_.theta.columns; }
    T* product(index d) const { return plan_.theta.gradient_tangent + d * plan_.theta.columns; }

    // The bias goes in first, so that the product adds to it in the same pass over y.
    T start_scale() const { return bias_ ? T(1) : T(0); }
    void start(const Context& context, const Extent& extent, T* y, const T* theta, index stride) {
        if (!bias_) return;
        map<pointwise::Copy<T>>(context, {}, extent,
                                {each(y, rows(), out_), per_column(theta + bias_at_, stride)});
    }

    // y[r] = x[r] W^T + beta y[r]
    void product_with(const Context& context, Range r, const T* x, const T* theta, T beta,
                      T* y) const {
        gemm(context, Transpose::no, Transpose::yes, r.size(), out_, in_, x + r.begin * in_, in_,
             theta + weight_at_, in_, beta, y + r.begin * out_, out_);
    }
    // dx[r] = dy[r] W + beta dx[r]
    void product_back(const Context& context, Range r, const T* dy, const T* theta, T beta,
                      T* dx) const {
        gemm(context, Transpose::no, Transpose::no, r.size(), in_, out_, dy + r.begin * out_, out_,
             theta + weight_at_, in_, beta, dx + r.begin * in_, in_);
    }
    // dW[:, columns] = dy^T x[:, columns] + beta dW[:, columns]
    void outer(const Context& context, Range columns, const T* dy, const T* x, T beta,
               T* gradient) const {
        gemm(context, Transpose::yes, Transpose::no, out_, columns.size(), rows(), dy, out_,
             x + columns.begin, in_, beta, gradient + weight_at_ + columns.begin, in_);
    }
    void weight_gradient(const Context& context, Range columns) const {
        outer(context, columns, y().gradient, x_.value, plan_.accumulate ? T(1) : T(0),
              plan_.theta.gradient);
    }
    // dW' = dy'^T x + dy^T x'
    void weight_product(const Context& context, Range columns, index d) const {
        outer(context, columns, of(y().gradient_tangent, d, out_), x_.value,
              plan_.accumulate ? T(1) : T(0), product(d));
        if (x_.tangent)
            outer(context, columns, y().gradient, of(x_.tangent, d, in_), T(1), product(d));
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
