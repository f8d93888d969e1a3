// Batch normalization of (rows, columns) and its derivatives to second order.
//
//   h = (x - mean) r,  r = 1 / sqrt(var + eps),  y = weight h + bias        (Ioffe & Szegedy 2015)
//
// With P(z) = z - mean(z) - h mean(h z), the projection that the batch statistics cause,
//   dx = weight r P(dy)                                                      backward
//   h' = r P(x'),  y' = weight h' + weight' h + bias'                        tangent
//   dx' = -r mean(h x') dx + r (u' - mean(u') - h (mean(h u') + mean(h' u)) - h' mean(h u))
// where u = weight dy and u' = weight' dy + weight dy'. With frozen statistics P is the identity:
// every mean above is zero, and the same formulas hold.
#pragma once

#include <cmath>

#include "ops/map.hpp"
#include "ops/reduce.hpp"

SP_BEGIN

namespace batch_norm {

// What the derivatives need of the forward pass: one value a column.
template <class T>
struct Statistics {
    T *mean, *r;
};
// The running statistics; `count` is the number of batches seen.
template <class T>
struct Running {
    T *mean, *variance, *count;
};

// mean(dy) and mean(h dy), zero when frozen.
template <class T>
struct Coupling {
    T *mean_dy, *mean_h_dy;
};
// The same of the tangents, (directions, columns): mean(x') and mean(h x').
template <class T>
struct TangentCoupling {
    T *mean_x, *mean_h_x;
};
// mean(u') and mean(h u') + mean(h' u), (directions, columns).
template <class T>
struct ProductCoupling {
    T *mean_u, *mean_h_u;
};

// h times a mean; nothing where that is zero, as it is when frozen, for all that h may be infinite.
template <class T>
SP_HD T coupled(T h, T mean) {
    return mean == T(0) ? T(0) : h * mean;
}
// A sum as a mean, likewise.
SP_HD double shared_out(double sum, double inverse_rows) {
    return inverse_rows == 0.0 ? 0.0 : sum * inverse_rows;
}

// Sums shifted by the first row, so that a large mean costs no digits.
template <class T>
struct Moments {
    using scalar = T;
    static constexpr int arity = 2, sums = 2;
    const T* shift;
    Statistics<T> statistics;
    Running<T> running;  // null pointers: not updated
    index rows;
    double eps, momentum;
    bool cumulative;  // instead of momentum: the average of all batches

    SP_HD void operator()(double (&sum)[2], const T& x, const T& first) const {
        const double d = double(x) - double(first);
        sum[0] += d;
        sum[1] += d * d;
    }
    SP_HD void finish(const double (&sum)[2], index, index c) const {
        const double n = double(rows), offset = sum[0] / n;
        const double mean = double(shift[c]) + offset;
        const double raw = sum[1] / n - offset * offset;
        const double variance = raw < 0.0 ? 0.0 : raw;  // a NaN stays
        statistics.mean[c] = T(mean);
        statistics.r[c] = T(1.0 / std::sqrt(variance + eps));
        if (running.mean) {
            const double m = cumulative ? 1.0 / (double(running.count[0]) + 1.0) : momentum;
            running.mean[c] = T((1.0 - m) * double(running.mean[c]) + m * mean);
            running.variance[c] =
                T((1.0 - m) * double(running.variance[c]) + m * variance * (n / (n - 1.0)));
        }
    }
};

template <class T>
struct FrozenMoments {
    using scalar = T;
    static constexpr int arity = 4;
    T eps;
    SP_HD void operator()(T& mean, T& r, const T& running_mean, const T& running_variance) const {
        mean = running_mean;
        r = T(1) / std::sqrt(running_variance + eps);
    }
};

template <class T>
struct Fill {
    using scalar = T;
    static constexpr int arity = 1;
    T value;
    SP_HD void operator()(T& x) const { x = value; }
};

template <class T>
struct Increment {
    using scalar = T;
    static constexpr int arity = 1;
    SP_HD void operator()(T& x) const { x += T(1); }
};

template <class T>
struct Apply {
    using scalar = T;
    static constexpr int arity = 6;
    SP_HD void operator()(T& y, const T& x, const T& mean, const T& r, const T& weight,
                          const T& bias) const {
        y = (x - mean) * r * weight + bias;
    }
};

template <class T>
struct BackwardSums {
    using scalar = T;
    static constexpr int arity = 4, sums = 2;
    T *weight_gradient, *bias_gradient;  // null without weight and bias
    bool accumulate;
    Coupling<T> coupling;
    double inverse_rows;  // zero when frozen

    SP_HD void operator()(double (&sum)[2], const T& dy, const T& x, const T& mean,
                          const T& r) const {
        sum[0] += double(dy);
        sum[1] += double(dy) * double((x - mean) * r);
    }
    SP_HD void finish(const double (&sum)[2], index, index c) const {
        if (weight_gradient) {
            bias_gradient[c] = T(sum[0] + (accumulate ? double(bias_gradient[c]) : 0.0));
            weight_gradient[c] = T(sum[1] + (accumulate ? double(weight_gradient[c]) : 0.0));
        }
        coupling.mean_dy[c] = T(shared_out(sum[0], inverse_rows));
        coupling.mean_h_dy[c] = T(shared_out(sum[1], inverse_rows));
    }
};

template <class T>
struct Backward {
    using scalar = T;
    static constexpr int arity = 8;
    SP_HD void operator()(T& dx, const T& dy, const T& x, const T& mean, const T& r,
                          const T& weight, const T& mean_dy, const T& mean_h_dy) const {
        dx = weight * r * (dy - mean_dy - coupled((x - mean) * r, mean_h_dy));
    }
};

template <class T>
struct TangentSums {
    using scalar = T;
    static constexpr int arity = 4, sums = 2;
    TangentCoupling<T> coupling;
    index columns;
    double inverse_rows;

    SP_HD void operator()(double (&sum)[2], const T& xt, const T& x, const T& mean,
                          const T& r) const {
        sum[0] += double(xt);
        sum[1] += double(xt) * double((x - mean) * r);
    }
    SP_HD void finish(const double (&sum)[2], index d, index c) const {
        coupling.mean_x[d * columns + c] = T(shared_out(sum[0], inverse_rows));
        coupling.mean_h_x[d * columns + c] = T(shared_out(sum[1], inverse_rows));
    }
};

template <class T>
SP_HD T normalized_tangent(T h, T xt, T r, T mean_x, T mean_h_x) {
    return r * (xt - mean_x - coupled(h, mean_h_x));
}

template <class T>
struct Tangent {
    using scalar = T;
    static constexpr int arity = 10;
    SP_HD void operator()(T& yt, const T& xt, const T& x, const T& mean, const T& r,
                          const T& weight, const T& mean_x, const T& mean_h_x, const T& weight_t,
                          const T& bias_t) const {
        const T h = (x - mean) * r;
        yt = weight * normalized_tangent(h, xt, r, mean_x, mean_h_x) + weight_t * h + bias_t;
    }
};

template <class T>
struct BackwardTangentSums {
    using scalar = T;
    static constexpr int arity = 8, sums = 3;
    const T *weight, *weight_t;        // weight_t: (directions, stride)
    const T *mean_dy, *mean_h_dy;      // zero when frozen
    T *weight_product, *bias_product;  // (directions, stride); null without weight and bias
    index stride;
    bool accumulate;
    ProductCoupling<T> coupling;
    index columns;
    double inverse_rows;

    SP_HD void operator()(double (&sum)[3], const T& dyt, const T& dy, const T& xt, const T& x,
                          const T& mean, const T& r, const T& mean_x, const T& mean_h_x) const {
        const T h = (x - mean) * r;
        sum[0] += double(dyt);
        sum[1] += double(dyt) * double(h);
        sum[2] += double(dy) * double(normalized_tangent(h, xt, r, mean_x, mean_h_x));
    }
    SP_HD void finish(const double (&sum)[3], index d, index c) const {
        const index p = d * stride + c, k = d * columns + c;
        if (weight_product) {
            bias_product[p] = T(sum[0] + (accumulate ? double(bias_product[p]) : 0.0));
            weight_product[p] = T(sum[1] + sum[2] + (accumulate ? double(weight_product[p]) : 0.0));
        }
        const double w = double(weight[c]), wt = double(weight_t[p]);
        coupling.mean_u[k] = T(wt * double(mean_dy[c]) + shared_out(w * sum[0], inverse_rows));
        coupling.mean_h_u[k] =
            T(wt * double(mean_h_dy[c]) + shared_out(w * (sum[1] + sum[2]), inverse_rows));
    }
};

template <class T>
struct BackwardTangent {
    using scalar = T;
    static constexpr int arity = 15;
    SP_HD void operator()(T& dxt, const T& dyt, const T& dy, const T& xt, const T& x, const T& mean,
                          const T& r, const T& weight, const T& weight_t, const T& mean_dy,
                          const T& mean_h_dy, const T& mean_x, const T& mean_h_x, const T& mean_u,
                          const T& mean_h_u) const {
        const T h = (x - mean) * r;
        const T ht = normalized_tangent(h, xt, r, mean_x, mean_h_x);
        const T projected = weight * (dy - mean_dy - coupled(h, mean_h_dy));  // P(u)
        const T ut = weight_t * dy + weight * dyt;
        const T projected_t = ut - mean_u - coupled(h, mean_h_u) - coupled(ht, weight * mean_h_dy);
        dxt = r * (projected_t - coupled(projected, r * mean_h_x));
    }
};

}  // namespace batch_norm

#define SP_BATCH_NORM_MAPS(X)    \
    X(batch_norm::Fill)          \
    X(batch_norm::Increment)     \
    X(batch_norm::FrozenMoments) \
    X(batch_norm::Apply)         \
    X(batch_norm::Backward) X(batch_norm::Tangent) X(batch_norm::BackwardTangent)
#define SP_BATCH_NORM_SUMS(X) \
    X(batch_norm::Moments)    \
    X(batch_norm::BackwardSums) X(batch_norm::TangentSums) X(batch_norm::BackwardTangentSums)

// The four methods, on plain arrays; every member of the team takes part in each call. Tangents are
// (directions, rows, columns), null where zero; those of weight and bias (directions, stride).
template <class T>
struct BatchNorm {
    index rows, columns;
    bool frozen;
    double eps, momentum;
    bool cumulative;

    batch_norm::Statistics<T> statistics;
    batch_norm::Coupling<T> coupling;
    batch_norm::TangentCoupling<T> tangent_coupling;
    batch_norm::ProductCoupling<T> product_coupling;
    const T* zeros;   // a row of them
    double* partial;  // `scratch(directions)` doubles

    index scratch(index directions) const {
        return reduce_columns_scratch(directions, rows, columns, 3);
    }

    void forward(const Context& context, const T* x, const T* weight, const T* bias,
                 const batch_norm::Running<T>& running, bool update, T* y) const {
        if (frozen) {
            map<batch_norm::FrozenMoments<T>>(
                context, {T(eps)}, {1, 1, columns},
                {per_column(statistics.mean), per_column(statistics.r), per_column(running.mean),
                 per_column(running.variance)});
            context.sync();
        } else {
            const batch_norm::Running<T> updated =
                update ? running : batch_norm::Running<T>{nullptr, nullptr, nullptr};
            reduce_columns<batch_norm::Moments<T>>(
                context, {x, statistics, updated, rows, eps, momentum, cumulative},
                {1, rows, columns}, {matrix(x), per_column(x)}, partial);
        }
        map<batch_norm::Apply<T>>(context, {}, {1, rows, columns},
                                  {matrix(y), matrix(x), per_column(statistics.mean),
                                   per_column(statistics.r), per_column(weight), per_column(bias)});
    }

    // dx may be null.
    void backward(const Context& context, const T* x, const T* weight, const T* dy, T* dx,
                  T* weight_gradient, T* bias_gradient, bool accumulate) const {
        const Operand<T> mean = per_column(statistics.mean), r = per_column(statistics.r);
        reduce_columns<batch_norm::BackwardSums<T>>(
            context, {weight_gradient, bias_gradient, accumulate, coupling, inverse_rows()},
            {1, rows, columns}, {matrix(dy), matrix(x), mean, r}, partial);
        if (dx == nullptr) return;
        map<batch_norm::Backward<T>>(
            context, {}, {1, rows, columns},
            {matrix(dx), matrix(dy), matrix(x), mean, r, per_column(weight),
             per_column(coupling.mean_dy), per_column(coupling.mean_h_dy)});
    }

    void forward_tangent(const Context& context, index directions, const T* x, const T* xt,
                         const T* weight, const T* weight_t, const T* bias_t, index stride,
                         T* yt) const {
        const Operand<T> mean = per_column(statistics.mean), r = per_column(statistics.r);
        const Extent extent{directions, rows, columns};
        reduce_columns<batch_norm::TangentSums<T>>(
            context, {tangent_coupling, columns, inverse_rows()}, extent,
            {tangent(xt), matrix(x), mean, r}, partial);
        map<batch_norm::Tangent<T>>(
            context, {}, extent,
            {tangent(yt), tangent(xt), matrix(x), mean, r, per_column(weight),
             per_column(tangent_coupling.mean_x, columns),
             per_column(tangent_coupling.mean_h_x, columns), per_column(weight_t, stride),
             per_column(bias_t, stride)});
    }

    void backward_tangent(const Context& context, index directions, const T* x, const T* xt,
                          const T* weight, const T* weight_t, index stride, const T* dy,
                          const T* dyt, T* dxt, T* weight_product, T* bias_product,
                          bool accumulate) const {
        const Operand<T> mean = per_column(statistics.mean), r = per_column(statistics.r);
        const Operand<T> mean_x = per_column(tangent_coupling.mean_x, columns);
        const Operand<T> mean_h_x = per_column(tangent_coupling.mean_h_x, columns);
        const Extent extent{directions, rows, columns};
        reduce_columns<batch_norm::BackwardTangentSums<T>>(
            context,
            {weight, weight_t, coupling.mean_dy, coupling.mean_h_dy, weight_product, bias_product,
             stride, accumulate, product_coupling, columns, inverse_rows()},
            extent, {tangent(dyt), matrix(dy), tangent(xt), matrix(x), mean, r, mean_x, mean_h_x},
            partial);
        if (dxt == nullptr) return;
        map<batch_norm::BackwardTangent<T>>(
            context, {}, extent,
            {tangent(dxt), tangent(dyt), matrix(dy), tangent(xt), matrix(x), mean, r,
             per_column(weight), per_column(weight_t, stride), per_column(coupling.mean_dy),
             per_column(coupling.mean_h_dy), mean_x, mean_h_x,
             per_column(product_coupling.mean_u, columns),
             per_column(product_coupling.mean_h_u, columns)});
    }

   private:
    double inverse_rows() const { return frozen ? 0.0 : 1.0 / double(rows); }
    Operand<T> matrix(const T* x) const { return shared(x, columns); }
    Operand<T> tangent(const T* x) const { return x ? each(x, rows, columns) : per_column(zeros); }
};

SP_END
