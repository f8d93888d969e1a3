// What the formulas in rules/ share. A rule is a struct with
//   scalar, name, states (arrays beside the parameter), hyper (names of its numbers, in order, the
//   rate first), a constructor from those numbers, the step (from 1) and what it carries from step
//   to step, which does its arithmetic in double, and a const call operator
//   (p, gradient, states...).
#pragma once

#include <cmath>

#include "core/math.hpp"

SP_BEGIN

constexpr int max_hyper = 12, max_carried = 2, max_states = 4;

// L2 decay. Without it the gradient passes untouched, also where p is not finite.
template <class T>
SP_HD T decayed(T g, T decay, T p) {
    return decay != T(0) ? std::fma(decay, p, g) : g;
}

// m + weight (g - m), from the nearer end, as PyTorch's lerp: exact at weight 1.
template <class T>
SP_HD T toward(T m, T g, T weight) {
    const bool near = weight < T(0.5);
    return std::fma(near ? weight : weight - T(1), g - m, near ? m : g);
}

// The larger of two, a NaN if either is one.
template <class T>
SP_HD T larger(T a, T b) {
    return a > b || a != a ? a : b;
}

// -1, 0 or 1; 0 for a NaN, as PyTorch's.
template <class T>
SP_HD T sign_of(T x) {
    return (x > T(0) ? T(1) : T(0)) - (x < T(0) ? T(1) : T(0));
}

// A rate that may be beyond T's range: a power of two is taken out of it, for the direction.
template <class T>
struct WideRate {
    T value, lift = T(1);
    SP_HD explicit WideRate(double full) : value(T(full)) {
        if (!(full > 1e30 && full < double(INFINITY) && sizeof(T) == 4)) return;
        const int beyond = std::ilogb(full) - 64;
        const double power = std::ldexp(1.0, beyond < 120 ? beyond : 120);
        lift = T(power);
        value = T(full / power);
    }
};

SP_HD double sign_of_maximize(double maximize) { return maximize != 0.0 ? -1.0 : 1.0; }

// b^n by binary powering: the same bits on host and device, for any n.
SP_HD double power(double b, index n) {
    double result = 1.0;
    for (; n > 0; n >>= 1, b *= b) {
        if (n & 1) result *= b;
    }
    return result;
}

// b^x for b > 0, from our own exp and log, for the same reason.
SP_HD double power_real(double b, double x) { return exp(x * saddlepoint::log(b)); }

SP_END
