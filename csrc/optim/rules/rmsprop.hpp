#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Tieleman & Hinton 2012; centered: Graves 2013; as torch.optim.RMSprop:
//   s = alpha s + (1 - alpha) g^2,  a += (1 - alpha)(g - a),
//   d = sqrt(s) + eps, or sqrt(s - a^2) + eps when centered,
//   p -= lr g / d,  or  b = momentum b + g / d,  p -= lr b
// `clamp` keeps s - a^2 from being rounded below zero.
template <class T, bool centered, bool heavy>
struct RmsPropRule {
    using scalar = T;
    static constexpr const char* name =
        centered ? heavy ? "rmsprop_centered_momentum" : "rmsprop_centered"
        : heavy  ? "rmsprop_momentum"
                 : "rmsprop";
    static constexpr int states = 1 + centered + heavy;
    static constexpr const char* hyper[] = {"lr",  "weight_decay", "maximize", "alpha",
                                            "eps", "momentum",     "clamp"};

    T rate, decay, sign, alpha, rest, eps, momentum, floor;
    SP_HD RmsPropRule(const double* h, index, double*)
        : rate(T(h[0])),
          decay(T(h[1])),
          sign(T(sign_of_maximize(h[2]))),
          alpha(T(h[3])),
          rest(T(1.0 - h[3])),
          eps(T(h[4])),
          momentum(T(h[5])),
          floor(T(h[6] != 0.0 ? 0.0 : -INFINITY)) {}

    SP_HD T scaled(T g, T& s) const {
        s = std::fma(rest * g, g, alpha * s);
        return g / (std::sqrt(s) + eps);
    }
    SP_HD T scaled(T g, T& s, T& a) const {
        s = std::fma(rest * g, g, alpha * s);
        a = toward(a, g, rest);
        const T variance = s - a * a;
        return g / (std::sqrt(variance < floor ? floor : variance) + eps);
    }

    SP_HD void operator()(T& p, const T& gradient, T& s) const {
        p = std::fma(-rate, scaled(decayed(sign * gradient, decay, p), s), p);
    }
    // `second` is the gradient's average when centered, else the momentum.
    SP_HD void operator()(T& p, const T& gradient, T& s, T& second) const {
        const T g = decayed(sign * gradient, decay, p);
        if constexpr (centered) {
            p = std::fma(-rate, scaled(g, s, second), p);
        } else {
            second = std::fma(momentum, second, scaled(g, s));
            p = std::fma(-rate, second, p);
        }
    }
    SP_HD void operator()(T& p, const T& gradient, T& s, T& a, T& b) const {
        b = std::fma(momentum, b, scaled(decayed(sign * gradient, decay, p), s, a));
        p = std::fma(-rate, b, p);
    }
};

template <class T>
using RmsProp = RmsPropRule<T, false, false>;
template <class T>
using RmsPropMomentum = RmsPropRule<T, false, true>;
template <class T>
using RmsPropCentered = RmsPropRule<T, true, false>;
template <class T>
using RmsPropCenteredMomentum = RmsPropRule<T, true, true>;

SP_END
