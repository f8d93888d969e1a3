#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Xie et al. 2022, Algorithm 1, as its authors' implementation:
//   d = g - g_before (0 at the first step),  m += (1 - beta1)(g - m),  v += (1 - beta2)(d - v),
//   n = beta3 n + (1 - beta3)(g + beta2 d)^2,
//   u = (m / bc1 + beta2 v / bc2) / (sqrt(n) / sqrt(bc3) + eps),
//   p = (p - lr u) / (1 + lr weight_decay), or without the proximal form p = (1 - lr wd) p - lr u
template <class T>
struct Adan {
    using scalar = T;
    static constexpr const char* name = "adan";
    static constexpr int states = 4;
    static constexpr const char* hyper[] = {"lr",    "decoupled_decay", "no_prox", "maximize",
                                            "beta1", "beta2",           "beta3",   "eps"};

    T sign, c1, c2, c3, beta2, beta3, eps, root_bc3, of_mean, of_change, shrink, divisor;
    bool first;
    SP_HD Adan(const double* h, index step, double*)
        : sign(T(sign_of_maximize(h[3]))),
          c1(T(1.0 - h[4])),
          c2(T(1.0 - h[5])),
          c3(T(1.0 - h[6])),
          beta2(T(h[5])),
          beta3(T(h[6])),
          eps(T(h[7])),
          root_bc3(T(std::sqrt(1.0 - power(h[6], step)))),
          of_mean(T(h[0] / (1.0 - power(h[4], step)))),
          of_change(T(h[0] * h[5] / (1.0 - power(h[5], step)))),
          shrink(T(h[2] != 0.0 ? 1.0 - h[0] * h[1] : 1.0)),
          divisor(T(h[2] != 0.0 ? 1.0 : 1.0 + h[0] * h[1])),
          first(step == 1) {}

    SP_HD void operator()(T& p, const T& gradient, T& m, T& n, T& v, T& before) const {
        const T g = sign * gradient;
        const T d = first ? T(0) : g - before;
        const T u = std::fma(beta2, d, g);
        m = toward(m, g, c1);
        v = toward(v, d, c2);
        n = std::fma(c3 * u, u, n * beta3);
        before = g;
        const T denominator = std::sqrt(n) / root_bc3 + eps;
        p = (p * shrink - (of_mean * m) / denominator - (of_change * v) / denominator) / divisor;
    }
};

SP_END
