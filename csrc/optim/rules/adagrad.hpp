#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Duchi, Hazan & Singer 2011, as torch.optim.Adagrad:
//   s += g^2,  p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)
template <class T>
struct Adagrad {
    using scalar = T;
    static constexpr const char* name = "adagrad";
    static constexpr int states = 1;
    static constexpr const char* hyper[] = {"lr", "weight_decay", "maximize", "lr_decay", "eps"};

    T rate, decay, sign, eps;
    SP_HD Adagrad(const double* h, index step, double*)
        : rate(T(h[0] / (1.0 + double(step - 1) * h[3]))),
          decay(T(h[1])),
          sign(T(sign_of_maximize(h[2]))),
          eps(T(h[4])) {}

    SP_HD void operator()(T& p, const T& gradient, T& s) const {
        const T g = decayed(sign * gradient, decay, p);
        s = std::fma(g, g, s);
        p = p - (rate * g) / (std::sqrt(s) + eps);
    }
};

SP_END
