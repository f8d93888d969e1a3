#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Kingma & Ba 2015, Algorithm 2, as torch.optim.Adamax (eps inside the maximum):
//   m += (1 - beta1)(g - m),  u = max(beta2 u, |g| + eps),  p -= lr / (1 - beta1^t) m / u
template <class T>
struct Adamax {
    using scalar = T;
    static constexpr const char* name = "adamax";
    static constexpr int states = 2;
    static constexpr const char* hyper[] = {"lr",    "weight_decay", "maximize",
                                            "beta1", "beta2",        "eps"};

    T rate, decay, sign, c1, beta2, eps;
    SP_HD Adamax(const double* h, index step, double*)
        : rate(T(h[0] / (1.0 - power(h[3], step)))),
          decay(T(h[1])),
          sign(T(sign_of_maximize(h[2]))),
          c1(T(1.0 - h[3])),
          beta2(T(h[4])),
          eps(T(h[5])) {}

    SP_HD void operator()(T& p, const T& gradient, T& m, T& u) const {
        const T g = decayed(sign * gradient, decay, p);
        m = toward(m, g, c1);
        u = larger(beta2 * u, std::fabs(g) + eps);
        p = p - (rate * m) / u;
    }
};

SP_END
