#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Liu et al. 2020, as torch.optim.RAdam (threshold 5, eps before the bias correction): Adam's m and
// v,  rho = rho_inf - 2 t beta2^t / (1 - beta2^t),  rho_inf = 2 / (1 - beta2) - 1,
//   p -= lr mhat r sqrt(1 - beta2^t) / (sqrt(v) + eps) when rho > 5, else lr mhat, with
//   r^2 = (rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho)
template <class T>
struct RAdam {
    using scalar = T;
    static constexpr const char* name = "radam";
    static constexpr int states = 2;
    static constexpr const char* hyper[] = {
        "lr", "weight_decay", "decoupled_decay", "maximize", "beta1", "beta2", "eps"};

    T decay, shrink, sign, c1, c2, beta2, eps, rate, rectified;  // the last 1 or 0
    SP_HD RAdam(const double* h, index step, double*)
        : decay(T(h[1])),
          shrink(T(1.0 - h[0] * h[2])),
          sign(T(sign_of_maximize(h[3]))),
          c1(T(1.0 - h[4])),
          c2(T(1.0 - h[5])),
          beta2(T(h[5])),
          eps(T(h[6])) {
        const double bt = power(h[5], step), bc2 = 1.0 - bt;
        const double top = 2.0 / (1.0 - h[5]) - 1.0, rho = top - 2.0 * double(step) * bt / bc2;
        const bool tractable = rho > 5.0;
        rectified = T(tractable ? 1 : 0);
        const double r2 = (rho - 4.0) * (rho - 2.0) * top / ((top - 4.0) * (top - 2.0) * rho);
        rate = T(h[0] / (1.0 - power(h[4], step)) * (tractable ? std::sqrt(r2 * bc2) : 1.0));
    }

    SP_HD void operator()(T& p, const T& gradient, T& m, T& v) const {
        const T g = decayed(sign * gradient, decay, p);
        m = toward(m, g, c1);
        v = std::fma(c2 * g, g, v * beta2);
        const T root = std::sqrt(v) + eps;
        p = p * shrink - (rate * m) / (rectified > T(0) ? root : T(1));
    }
};

SP_END
