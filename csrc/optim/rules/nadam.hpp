#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Dozat 2016, as torch.optim.NAdam: Adam's m and v,
//   mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2),  d = sqrt(v / (1 - beta2^t)) + eps,
//   p -= lr (1 - mu_t) / (1 - mu_1...mu_t) g / d + lr mu_{t+1} / (1 - mu_1...mu_{t+1}) m / d
template <class T>
struct NAdam {
    using scalar = T;
    static constexpr const char* name = "nadam";
    static constexpr int states = 2;
    static constexpr const char* hyper[] = {"lr",       "weight_decay",  "decoupled_decay",
                                            "maximize", "beta1",         "beta2",
                                            "eps",      "momentum_decay"};

    T decay, shrink, sign, c1, c2, beta2, bc2, eps, of_gradient, of_mean;
    SP_HD NAdam(const double* h, index step, double* carry)
        : decay(T(h[1])),
          shrink(T(1.0 - h[0] * h[2])),
          sign(T(sign_of_maximize(h[3]))),
          c1(T(1.0 - h[4])),
          c2(T(1.0 - h[5])),
          beta2(T(h[5])),
          bc2(T(1.0 - power(h[5], step))),
          eps(T(h[6])) {
        const double mu = momentum(h, step), next = momentum(h, step + 1);
        carry[0] = (step == 1 ? 1.0 : carry[0]) * mu;  // mu_1...mu_t
        of_gradient = T(h[0] * (1.0 - mu) / (1.0 - carry[0]));
        of_mean = T(h[0] * next / (1.0 - carry[0] * next));
    }
    SP_HD static double momentum(const double* h, index step) {
        return h[4] * (1.0 - 0.5 * power_real(0.96, double(step) * h[7]));
    }

    SP_HD void operator()(T& p, const T& gradient, T& m, T& v) const {
        const T g = decayed(sign * gradient, decay, p);
        m = toward(m, g, c1);
        v = std::fma(c2 * g, g, v * beta2);
        const T d = std::sqrt(v / bc2) + eps;
        p = p * shrink - (of_gradient * g) / d - (of_mean * m) / d;
    }
};

SP_END
