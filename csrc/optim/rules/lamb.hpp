#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// You et al. 2020, Algorithm 2 with phi the identity:
//   r = mhat / (sqrt(vhat) + eps) + weight_decay p,  p -= lr |p| / |r| r
// The norms are a tensor's, so a step is two passes: `prepare` moves the averages and gives r, the
// call operator follows with the ratio, which is 1 where a norm is 0.
template <class T>
struct Lamb {
    using scalar = T;
    static constexpr const char* name = "lamb";
    static constexpr int states = 2;
    static constexpr int prepared = 2;
    static constexpr const char* hyper[] = {"lr",    "decoupled_decay", "maximize",
                                            "beta1", "beta2",           "eps"};

    T decay, sign, c1, c2, beta2, bc1, root_bc2, eps;
    WideRate<T> rate;
    SP_HD Lamb(const double* h, index step, double*)
        : decay(T(h[1])),
          sign(T(sign_of_maximize(h[2]))),
          c1(T(1.0 - h[3])),
          c2(T(1.0 - h[4])),
          beta2(T(h[4])),
          bc1(T(1.0 - power(h[3], step))),
          root_bc2(T(std::sqrt(1.0 - power(h[4], step)))),
          eps(T(h[5])),
          rate(h[0]) {}

    SP_HD void set_norms(double p2, double r2) {
        if (!(p2 > 0.0 && r2 > 0.0)) return;
        rate = WideRate<T>(double(rate.value) * std::sqrt(p2) / std::sqrt(r2));
    }
    SP_HD T direction(T p, T m, T v) const {
        return decayed((m / bc1) / (std::sqrt(v) / root_bc2 + eps), decay, p);
    }
    SP_HD T prepare(T p, T gradient, T& m, T& v) const {
        const T g = sign * gradient;
        m = toward(m, g, c1);
        v = std::fma(c2 * g, g, v * beta2);
        return direction(p, m, v);
    }
    SP_HD void operator()(T& p, const T&, T& m, T& v) const {
        p = std::fma(-rate.value, rate.lift * direction(p, m, v), p);
    }
};

SP_END
