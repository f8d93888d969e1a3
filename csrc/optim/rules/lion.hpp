#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Chen et al. 2023, Algorithm 2, with decoupled decay:
//   p -= lr (sign(beta1 m + (1 - beta1) g) + weight_decay p),  m = beta2 m + (1 - beta2) g
template <class T>
struct Lion {
    using scalar = T;
    static constexpr const char* name = "lion";
    static constexpr int states = 1;
    static constexpr const char* hyper[] = {"lr", "decoupled_decay", "maximize", "beta1", "beta2"};

    T rate, shrink, sign, c1, c2;
    SP_HD Lion(const double* h, index, double*)
        : rate(T(h[0])),
          shrink(T(1.0 - h[0] * h[1])),
          sign(T(sign_of_maximize(h[2]))),
          c1(T(1.0 - h[3])),
          c2(T(1.0 - h[4])) {}

    SP_HD void operator()(T& p, const T& gradient, T& m) const {
        const T g = sign * gradient;
        p = std::fma(-rate, sign_of(toward(m, g, c1)), p * shrink);
        m = toward(m, g, c2);
    }
};

SP_END
