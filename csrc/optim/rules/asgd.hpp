#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Polyak & Juditsky 1992 as in Bottou's and torch.optim.ASGD:
//   p = (1 - lambda eta) p - eta g,  a += mu (p - a),
//   afterwards eta = lr / (1 + lambda lr t)^alpha, mu = 1 / max(1, t - t0)
template <class T>
struct Asgd {
    using scalar = T;
    static constexpr const char* name = "asgd";
    static constexpr int states = 1;
    static constexpr const char* hyper[] = {"lr",    "weight_decay", "maximize",
                                            "lambd", "alpha",        "t0"};

    T decay, sign, eta, shrink, mu;
    SP_HD Asgd(const double* h, index step, double* carry)
        : decay(T(h[1])), sign(T(sign_of_maximize(h[2]))) {
        if (step == 1) {
            carry[0] = h[0];
            carry[1] = 1.0;
        }
        eta = T(carry[0]);
        shrink = T(1.0 - h[3] * carry[0]);
        mu = T(carry[1]);
        const double late = double(step) - h[5];
        carry[0] = h[0] / power_real(1.0 + h[3] * h[0] * double(step), h[4]);
        carry[1] = 1.0 / (late > 1.0 ? late : 1.0);
    }

    SP_HD void operator()(T& p, const T& gradient, T& average) const {
        const T g = decayed(sign * gradient, decay, p);
        p = std::fma(-eta, g, p * shrink);
        average = mu == T(1) ? p : std::fma(mu, p - average, average);
    }
};

SP_END
