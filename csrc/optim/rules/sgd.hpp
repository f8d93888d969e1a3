#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Stochastic gradient descent, as torch.optim.SGD:  p -= lr g,  g += weight_decay p before.
template <class T>
struct Sgd {
    using scalar = T;
    static constexpr const char* name = "sgd";
    static constexpr int states = 0;
    static constexpr const char* hyper[] = {"lr", "weight_decay", "maximize"};

    T lr, decay, sign;
    SP_HD Sgd(const double* h, index, double*)
        : lr(T(h[0])), decay(T(h[1])), sign(T(sign_of_maximize(h[2]))) {}

    SP_HD void operator()(T& p, const T& gradient) const {
        const T g = decayed(sign * gradient, decay, p);
        p = std::fma(-lr, g, p);
    }
};

// Polyak's momentum with the rate outside the buffer (Sutskever et al. 2013 put it inside):
//   b = momentum b + (1 - dampening) g  (b = g at the first step),  p -= lr b
// and Nesterov's form p -= lr (g + momentum b).
template <class T>
struct SgdMomentum {
    using scalar = T;
    static constexpr const char* name = "sgd_momentum";
    static constexpr int states = 1;
    static constexpr const char* hyper[] = {"lr",       "weight_decay", "maximize",
                                            "momentum", "dampening",    "nesterov"};

    T lr, decay, sign, momentum, keep;
    bool nesterov;
    SP_HD SgdMomentum(const double* h, index step, double*)
        : lr(T(h[0])),
          decay(T(h[1])),
          sign(T(sign_of_maximize(h[2]))),
          momentum(T(h[3])),
          keep(step == 1 ? T(1) : T(1.0 - h[4])),
          nesterov(h[5] != 0.0) {}

    // The buffer starts at zero, so the first step needs only to ignore the dampening.
    SP_HD void operator()(T& p, const T& gradient, T& b) const {
        const T g = decayed(sign * gradient, decay, p);
        b = std::fma(momentum, b, keep * g);
        const T direction = nesterov ? std::fma(momentum, b, g) : b;
        p = std::fma(-lr, direction, p);
    }
};

SP_END
