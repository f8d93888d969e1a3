// Losses: value, gradient and Hessian product of one row of outputs.
#pragma once

#include <memory>

#include "core/math.hpp"
#include "nn/layer.hpp"
#include "ops/for_rows.hpp"

SP_BEGIN

// What a batch is compared with: labels for cross-entropy, values for the squared error.
template <class T>
struct Targets {
    const std::int32_t* labels = nullptr;  // (rows)
    const T* values = nullptr;             // (rows, columns)
};

namespace rows {

// loss = log(sum exp z) - z[label];  dz = scale (p - onehot),  p = softmax(z)
template <class T>
struct CrossEntropy {
    const T* z;
    const std::int32_t* labels;
    T *p, *dz;  // dz may be null
    double* loss;
    index columns;
    T scale;

    SP_HD void operator()(index, index row) const {
        const T* logits = z + row * columns;
        T* probability = p + row * columns;
        T top = logits[0];
        for (index c = 1; c < columns; ++c) top = logits[c] > top ? logits[c] : top;
        T sum = T(0);
        for (index c = 0; c < columns; ++c) probability[c] = exp(logits[c] - top);
        for (index c = 0; c < columns; ++c) sum += probability[c];
        const T inverse = T(1) / sum;
        for (index c = 0; c < columns; ++c) probability[c] *= inverse;
        const std::int32_t label = labels[row];
        // The largest adds 1 to the sum; where it is infinite, or one is NaN, the sum is NaN.
        loss[row] = log(double(sum)) + (double(top) - double(logits[label]));
        if (dz == nullptr) return;
        T* gradient = dz + row * columns;
        for (index c = 0; c < columns; ++c) gradient[c] = scale * probability[c];
        gradient[label] -= scale;
    }
};

// dz' = scale p (z' - <p, z'>)
template <class T>
struct CrossEntropyTangent {
    const T *p, *zt;
    T* dzt;
    index rows, columns;
    T scale;

    SP_HD void operator()(index direction, index row) const {
        const T* probability = p + row * columns;
        const T* in = zt + (direction * rows + row) * columns;
        T* out = dzt + (direction * rows + row) * columns;
        T mean = T(0);
        for (index c = 0; c < columns; ++c) mean += probability[c] * in[c];
        for (index c = 0; c < columns; ++c) out[c] = scale * probability[c] * (in[c] - mean);
    }
};

// loss = mean over columns of (z - t)^2;  dz = 2 scale (z - t) / columns
template <class T>
struct SquaredError {
    const T *z, *t;
    T* dz;  // may be null
    double* loss;
    index columns;
    T scale;

    SP_HD void operator()(index, index row) const {
        const T* output = z + row * columns;
        const T* target = t + row * columns;
        double sum = 0.0;
        for (index c = 0; c < columns; ++c) {
            const double e = double(output[c]) - double(target[c]);
            sum += e * e;
        }
        loss[row] = sum / double(columns);
        if (dz == nullptr) return;
        const T factor = T(2) * scale / T(columns);
        for (index c = 0; c < columns; ++c)
            dz[row * columns + c] = factor * (output[c] - target[c]);
    }
};

// dz' = 2 scale z' / columns
template <class T>
struct SquaredErrorTangent {
    const T* zt;
    T* dzt;
    index rows, columns;
    T scale;

    SP_HD void operator()(index direction, index row) const {
        const index at = (direction * rows + row) * columns;
        const T factor = T(2) * scale / T(columns);
        for (index c = 0; c < columns; ++c) dzt[at + c] = factor * zt[at + c];
    }
};

}  // namespace rows

#define SP_ROW_FUNCTIONS(X) \
    X(rows::CrossEntropy)   \
    X(rows::CrossEntropyTangent) X(rows::SquaredError) X(rows::SquaredErrorTangent)

// A loss bound to the outputs of a network. `scale` weighs each row.
template <class T>
class Loss {
   public:
    virtual ~Loss() = default;
    virtual void forward(const Context& context, const Targets<T>& targets, T scale) = 0;
    virtual void tangent(const Context& context, index directions, T scale) = 0;

    double* row_loss = nullptr;  // (rows), unscaled
};

template <class T>
std::unique_ptr<Loss<T>> make_loss(const std::string& kind, Plan<T>& plan, Signal<T>* output);

SP_END
