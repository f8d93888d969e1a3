// Activations: the value and the slope, on any number type. The second derivative is the slope on
// dual numbers.
#pragma once

#include "core/math.hpp"

namespace saddlepoint {

// A piecewise linear function has no curvature, almost everywhere.
struct ReLU {
    static constexpr const char* name = "relu";
    static constexpr bool piecewise_linear = true;
    template <class V>
    static SP_HD V value(V x) {
        return real(x) > 0 || real(x) != real(x) ? x : Constant<V>::of(0);  // a NaN stays
    }
    template <class V>
    static SP_HD V slope(V x) {
        return Constant<V>::of(real(x) > 0 ? 1 : 0);  // 0 at 0, as PyTorch
    }
};

struct Tanh {
    static constexpr const char* name = "tanh";
    static constexpr bool piecewise_linear = false;
    template <class V>
    static SP_HD V value(V x) {
        return tanh(x);
    }
    template <class V>
    static SP_HD V slope(V x) {
        return tanh_slope(x);
    }
};

struct Sigmoid {
    static constexpr const char* name = "sigmoid";
    static constexpr bool piecewise_linear = false;
    template <class V>
    static SP_HD V value(V x) {
        return sigmoid(x);
    }
    template <class V>
    static SP_HD V slope(V x) {
        const V y = sigmoid(x);
        return y * (scalar_of<V>(1) - y);
    }
};

}  // namespace saddlepoint

// Every activation, once: a new one is a struct above and a word here.
#define SP_ACTIVATIONS(X) X(ReLU) X(Tanh) X(Sigmoid)
