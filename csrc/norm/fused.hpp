// Batch normalization of whole tensors with its activation and residual: forward, backward,
// tangent, the tangent of the backward pass and of the tangent, for any layout and dtype.
//
// A tensor is (outer, channels, inner) in memory: NCHW has the images outside and the pixels
// inside, NHWC and (N, C) have inner = 1. The formulas of an element are in norm/formulas.hpp.
#pragma once

#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "norm/sweep.hpp"

SP_BEGIN

namespace normalization {

// One number a channel, of any dtype; null where there is none.
struct Values {
    void* data = nullptr;
    Dtype dtype = Dtype::f32;

    SP_HD double get(index c, double otherwise) const {
        if (data == nullptr) return otherwise;
        switch (dtype) {
            case Dtype::f32: return double(static_cast<const float*>(data)[c]);
            case Dtype::f64: return static_cast<const double*>(data)[c];
            case Dtype::bf16: return double(widen(static_cast<const bfloat16*>(data)[c]));
            default: return double(widen(static_cast<const float16*>(data)[c]));
        }
    }
    SP_HD void set(index c, double x) const {
        if (data == nullptr) return;
        switch (dtype) {
            case Dtype::f32: static_cast<float*>(data)[c] = float(x); break;
            case Dtype::f64: static_cast<double*>(data)[c] = x; break;
            case Dtype::bf16: static_cast<bfloat16*>(data)[c] = rounded<bfloat16>(float(x)); break;
            default: static_cast<float16*>(data)[c] = rounded<float16>(float(x));
        }
    }
};

struct Shape {
    index outer, channels, inner;
    index group;  // of the outer units, how many have statistics of their own; at least 1
    Dtype dtype;
    SP_HD index groups() const { return outer == 0 ? 1 : (outer + group - 1) / group; }
    SP_HD index size() const { return outer * channels * inner; }
    SP_HD index outer_of(index g) const {
        const index left = outer - g * group;
        return left < group ? left : group;
    }
    // Elements of each channel that share statistics.
    SP_HD index count_of(index g) const { return outer_of(g) * inner; }
};

// Rows of the statistics, each (groups, channels). An array has the first two, or all.
enum Table { Mean, InverseDeviation, Alpha, Beta, Gamma, Delta };

struct Norm {
    Shape shape;
    Activation activation = Activation::none;
    double slope = 0.0;  // of a leaky ReLU
    const void* x = nullptr;
    const void* residual = nullptr;      // before a smooth activation: to find its argument again
    const std::uint8_t* gate = nullptr;  // after a residual: where the argument was positive
    Values weight, bias;
    double* statistics = nullptr;
    bool all_tables = false;
};

// How the statistics come about.
struct Origin {
    enum Source { batch, running, given } source = batch;
    double eps = 1e-5;
    Values running_mean, running_variance;  // null: none
    double momentum = 0.1;
    bool cumulative = false;  // instead of momentum: the average of all batches
    double seen = 0.0;        // batches so far
    // Batch renormalization (Ioffe 2017); 0: none.
    double r_max = 0.0, d_max = 0.0;
    // Each channel scaled by a number in [1, scale) and moved by one in [-mean, mean) that are
    // drawn anew at each step (Santurkar et al. 2018); scale 0: not.
    double noise_mean = 0.0, noise_scale = 0.0;
    std::uint64_t seed = 0, step = 0;
};

// The bytes that hold a bit for each element.
index gate_bytes(const Shape& shape);

void forward(const Stream& stream, const Norm& norm, const Origin& how, void* y,
             std::uint8_t* new_gate);

// (mean, sum of squares about it) of each channel, (2, channels); one group.
void moments(const Stream& stream, const Shape& shape, const void* x, double* out);

// Derivatives go in parts, sums over the channels and the rest, so that others can add their sums
// in between. Of a smooth activation `second` has more sums, which need the first ones. `sums` are
// (number, groups, channels); `weighs` is one over the number of elements that share statistics, 0
// for statistics that do not depend on x, below 0 for the size of each group here. Where `sums` are
// everybody's, `second` takes the parameters' gradients of `own`, with everybody's means.
struct Parts {
    bool sum = true, more = true, apply = true;
    double* sums = nullptr;
    double weighs = -1.0;
    const double* own = nullptr;
};

// (sum dz, sum dz h)
constexpr int backward_sums = 2, tangent_sums = 2, second_sums = 7, second_tangent_sums = 5;
void backward(const Stream& stream, const Norm& norm, const Parts& parts, const void* dy, void* dx,
              void* dresidual, const Values& dweight, const Values& dbias);

// A direction of x, weight, bias and residual; null where zero.
struct Direction {
    const void* x = nullptr;
    const void* residual = nullptr;
    Values weight, bias;
};

// (sum x', sum x' h)
void tangent(const Stream& stream, const Norm& norm, const Parts& parts, const Direction& along,
             void* yt);

// Of the backward pass, along a direction and dy' (null where zero); and y' where wanted.
// (sum x', sum x' h, sum dz, sum dz h, sum dz x', sum dz', sum dz' h)
void second(const Stream& stream, const Norm& norm, const Parts& parts, const Direction& along,
            const void* dy, const void* dyt, void* dxt, void* dresidual_t, void* yt,
            const Values& dweight_t, const Values& dbias_t);

// The second derivative of y along two directions.
// (sum x', sum x' h, sum x*, sum x* h, sum x' x*), x* being the other one's
void second_tangent(const Stream& stream, const Norm& norm, const Parts& parts,
                    const Direction& along, const Direction& other, void* ytt);

}  // namespace normalization

SP_END
