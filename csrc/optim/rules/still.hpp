#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// The parameter stays: for those without a gradient, whose averages and copies go on.
template <class T>
struct Still {
    using scalar = T;
    static constexpr const char* name = "still";
    static constexpr int states = 0;
    static constexpr const char* hyper[] = {"lr"};

    SP_HD Still(const double*, index, double*) {}
    SP_HD void operator()(T&, const T&) const {}
};

SP_END
