// What the formulas in rules/ share. A rule is a struct with
//   scalar, name, states (arrays beside the parameter, zero at the start), hyper (names of its
//   numbers, in order), a constructor from those numbers and the step (from 1), which does its
//   arithmetic in double, and a const call operator (p, gradient, states...).
#pragma once

#include <cmath>

#include "core/config.hpp"

SP_BEGIN

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

// b^n by binary powering: the same bits on host and device, for any n.
SP_HD double power(double b, index n) {
    double result = 1.0;
    for (; n > 0; n >>= 1, b *= b) {
        if (n & 1) result *= b;
    }
    return result;
}

SP_END
