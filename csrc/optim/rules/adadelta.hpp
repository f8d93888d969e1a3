#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Zeiler 2012, as torch.optim.Adadelta:
//   s = rho s + (1 - rho) g^2,  d = sqrt(a + eps) / sqrt(s + eps) g,
//   a = rho a + (1 - rho) d^2,  p -= lr d
template <class T>
struct Adadelta {
    using scalar = T;
    static constexpr const char* name = "adadelta";
    static constexpr int states = 2;
    static constexpr const char* hyper[] = {"lr", "weight_decay", "maximize", "rho", "eps"};

    T rate, decay, sign, rho, rest, eps;
    SP_HD Adadelta(const double* h, index, double*)
        : rate(T(h[0])),
          decay(T(h[1])),
          sign(T(sign_of_maximize(h[2]))),
          rho(T(h[3])),
          rest(T(1.0 - h[3])),
          eps(T(h[4])) {}

    SP_HD void operator()(T& p, const T& gradient, T& s, T& a) const {
        const T g = decayed(sign * gradient, decay, p);
        s = std::fma(rest * g, g, rho * s);
        const T d = std::sqrt(a + eps) / std::sqrt(s + eps) * g;
        a = std::fma(rest * d, d, rho * a);
        p = std::fma(-rate, d, p);
    }
};

SP_END
