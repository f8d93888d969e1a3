#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Adam (Kingma & Ba 2015, Algorithm 1) and AdamW (Loshchilov & Hutter 2019), as torch.optim; in
// float the bits of PyTorch's fused CPU kernel (of its vector loop: in the last size mod 8 elements
// of a tensor that one rounds v otherwise, by an ulp):
//   m += (1 - beta1)(g - m),  v = beta2 v + (1 - beta2) g^2
//   p = (1 - lr decoupled) p - (lr / bc1) m / (sqrt(v) / sqrt(bc2) + eps),  bc = 1 - beta^t
template <class T>
struct AdamScalars {
    T l2, shrink, sign, c1, c2, beta2, root_bc2, eps, rate;
    SP_HD AdamScalars(const double* h, index step)
        : l2(T(h[1])),
          shrink(T(1.0 - h[0] * h[2])),
          sign(T(sign_of_maximize(h[3]))),
          c1(T(1.0 - h[4])),
          c2(T(1.0 - h[5])),
          beta2(T(h[5])),
          root_bc2(T(std::sqrt(1.0 - power(h[5], step)))),
          eps(T(h[6])),
          rate(T(h[0] / (1.0 - power(h[4], step)))) {}
};

#define SP_ADAM_HYPER {"lr", "weight_decay", "decoupled_decay", "maximize", "beta1", "beta2", "eps"}

template <class T>
struct Adam {
    using scalar = T;
    static constexpr const char* name = "adam";
    static constexpr int states = 2;
    static constexpr const char* hyper[] = SP_ADAM_HYPER;

    AdamScalars<T> s;
    SP_HD Adam(const double* h, index step, double*) : s(h, step) {}

    SP_HD void operator()(T& p, const T& gradient, T& m, T& v) const {
        const T g = decayed(s.sign * gradient, s.l2, p);
        m = toward(m, g, s.c1);
        v = std::fma(s.c2 * g, g, v * s.beta2);
        const T denominator = std::sqrt(v) / s.root_bc2 + s.eps;
        p = p * s.shrink - (s.rate * m) / denominator;
    }
};

// Reddi, Kale & Kumar 2018, as PyTorch: the maximum of the raw v, corrected afterwards.
template <class T>
struct AmsGrad {
    using scalar = T;
    static constexpr const char* name = "amsgrad";
    static constexpr int states = 3;
    static constexpr const char* hyper[] = SP_ADAM_HYPER;

    AdamScalars<T> s;
    SP_HD AmsGrad(const double* h, index step, double*) : s(h, step) {}

    SP_HD void operator()(T& p, const T& gradient, T& m, T& v, T& top) const {
        const T g = decayed(s.sign * gradient, s.l2, p);
        m = toward(m, g, s.c1);
        v = std::fma(s.c2 * g, g, v * s.beta2);
        top = larger(top, v);
        const T denominator = std::sqrt(top) / s.root_bc2 + s.eps;
        p = p * s.shrink - (s.rate * m) / denominator;
    }
};

SP_END
