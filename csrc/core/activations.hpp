// Activations: the value and the slope, on any number. The second derivative is the slope on dual
// numbers.
#pragma once

#include "core/math.hpp"
#include "core/number.hpp"

namespace saddlepoint {

// A piecewise linear function has no curvature, almost everywhere.
struct ReLU {
    static constexpr const char* name = "relu";
    static constexpr bool piecewise_linear = true;
    template <class V>
    SP_HD V value(const V& z) const {
        return select(negative(z), all<V>(0), z);  // a NaN stays
    }
    template <class V>
    SP_HD V times_slope(const V& z, const V& d) const {
        return select(at_most_zero(z), all<V>(0), d);  // 0 at 0 and 1 at a NaN, as PyTorch
    }
    template <class V>
    SP_HD V slope(const V& z) const {
        return times_slope(z, all<V>(1));
    }
};

struct LeakyReLU {
    static constexpr const char* name = "leaky_relu";
    static constexpr bool piecewise_linear = true;
    double negative_slope = 0.01;
    template <class V>
    SP_HD V value(const V& z) const {
        return times_slope(z, z);
    }
    template <class V>
    SP_HD V times_slope(const V& z, const V& d) const {
        return select(positive(z), d, all<V>(negative_slope) * d);
    }
    template <class V>
    SP_HD V slope(const V& z) const {
        return times_slope(z, all<V>(1));
    }
};

// x Phi(x) (Hendrycks & Gimpel 2016).
struct GELU {
    static constexpr const char* name = "gelu";
    static constexpr bool piecewise_linear = false;
    template <class T>
    SP_HD T value(T x) const {
        const T p = normal_cdf(x);
        return p == T(0) ? T(0) : x * p;  // 0 where Phi is, also for an infinite x
    }
    template <class V>
    SP_HD V slope(V x) const {
        return normal_cdf(x) + x * normal_density(x);
    }
};

struct Tanh {
    static constexpr const char* name = "tanh";
    static constexpr bool piecewise_linear = false;
    template <class T>
    SP_HD T value(T x) const {
        return tanh(x);
    }
    template <class V>
    SP_HD V slope(V x) const {
        return tanh_slope(x);
    }
};

struct Sigmoid {
    static constexpr const char* name = "sigmoid";
    static constexpr bool piecewise_linear = false;
    template <class T>
    SP_HD T value(T x) const {
        return sigmoid(x);
    }
    template <class V>
    SP_HD V slope(V x) const {
        const V y = sigmoid(x);
        return y * (scalar_of<V>(1) - y);
    }
};

}  // namespace saddlepoint

// Every activation, once: a new one is a struct above and a word here.
#define SP_ACTIVATIONS(X) X(ReLU) X(LeakyReLU) X(GELU) X(Tanh) X(Sigmoid)
