#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// The last line of Adafactor: p = (1 - lr weight_decay) p - rate u, where u and rate come from
// optim/adafactor_cpu.hpp.
template <class T>
struct Adafactor {
    using scalar = T;
    static constexpr const char* name = "adafactor";
    static constexpr int states = 0;
    static constexpr const char* hyper[] = {
        "lr", "decoupled_decay", "maximize", "beta2_decay", "eps1", "eps2", "d"};

    T shrink, rate;
    double weight, rho, eps1, eps2, d, sign;
    SP_HD Adafactor(const double* h, index step, double*)
        : shrink(T(1.0 - h[0] * h[1])),
          rate(T(0)),
          weight(power_real(double(step), h[3])),
          rho(std::fmin(h[0], 1.0 / std::sqrt(double(step)))),
          eps1(h[4]),
          eps2(h[5]),
          d(h[6]),
          sign(sign_of_maximize(h[2])) {}

    SP_HD void operator()(T& p, const T& u) const { p = std::fma(-rate, u, p * shrink); }
};

// Its first line, which takes the gradient as it comes.
template <class T>
struct AdafactorGradient {
    using scalar = T;
    static constexpr bool internal = true;
    static constexpr const char* name = "adafactor_gradient";
    static constexpr int states = 0;
    static constexpr const char* hyper[] = {"lr"};

    T sign;
    SP_HD AdafactorGradient(const double* h, index, double*) : sign(T(sign_of_maximize(h[2]))) {}

    SP_HD void operator()(T& x, const T& gradient) const { x = sign * gradient; }
};

SP_END
