#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// You, Gitman & Ginsburg 2017, Algorithm 1, with the rate inside the buffer:
//   local = trust |p| / (|g| + weight_decay |p| + eps),  b = momentum b + lr local (g +
//   weight_decay p),  p -= b
// The norms are a tensor's; local is 1 where one of them is 0.
template <class T>
struct Lars {
    using scalar = T;
    static constexpr const char* name = "lars";
    static constexpr int states = 1;
    static constexpr int prepared = 0;
    static constexpr const char* hyper[] = {"lr",       "weight_decay",      "maximize",
                                            "momentum", "trust_coefficient", "eps"};

    double lr, trust, eps;
    T decay, sign, momentum;
    WideRate<T> rate;
    SP_HD Lars(const double* h, index, double*)
        : lr(h[0]),
          trust(h[4]),
          eps(h[5]),
          decay(T(h[1])),
          sign(T(sign_of_maximize(h[2]))),
          momentum(T(h[3])),
          rate(h[0]) {}

    SP_HD void set_norms(double p2, double g2) {
        if (!(p2 > 0.0 && g2 > 0.0)) return;
        const double p = std::sqrt(p2);
        rate = WideRate<T>(lr * trust * p / (std::sqrt(g2) + double(decay) * p + eps));
    }
    SP_HD T prepare(T, T gradient) const { return gradient; }
    SP_HD void operator()(T& p, const T& gradient, T& b) const {
        const T g = rate.lift * decayed(sign * gradient, decay, p);
        b = std::fma(momentum, b, rate.value * g);
        p = p - b;
    }
};

SP_END
