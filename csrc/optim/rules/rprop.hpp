#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// Riedmiller & Braun 1993 without backtracking (iRprop-, Igel & Huesken 2000), as
// torch.optim.Rprop: each element's own step grows where the gradient keeps its sign, and shrinks
// where it changes; there the element stays, and the next step neither grows nor shrinks.
template <class T>
struct Rprop {
    using scalar = T;
    static constexpr const char* name = "rprop";
    static constexpr int states = 2;
    static constexpr const char* hyper[] = {"lr",       "maximize",      "eta_minus",
                                            "eta_plus", "smallest_step", "largest_step"};

    T sign, minus, plus, smallest, largest;
    SP_HD Rprop(const double* h, index, double*)
        : sign(T(sign_of_maximize(h[1]))),
          minus(T(h[2])),
          plus(T(h[3])),
          smallest(T(h[4])),
          largest(T(h[5])) {}

    SP_HD void operator()(T& p, const T& gradient, T& previous, T& size) const {
        const T product = sign * gradient * previous;
        const T scaled = size * (product > T(0) ? plus : product < T(0) ? minus : T(1));
        const T bounded = scaled < smallest ? smallest : scaled;
        size = bounded > largest ? largest : bounded;
        const T g = product < T(0) ? T(0) : sign * gradient;
        p = std::fma(-sign_of(g), size, p);
        previous = g;
    }
};

SP_END
