#pragma once

#include "optim/rule.hpp"

SP_BEGIN

// The parameter stays: for those without a gradient, whose averages and copies go on.
template <class T>
struct Unmoved {
    using scalar = T;
    static constexpr bool internal = true;
    static constexpr const char* name = "unmoved";
    static constexpr int states = 0;
    static constexpr const char* hyper[] = {"lr"};

    SP_HD Unmoved(const double*, index, double*) {}
    SP_HD void operator()(T&, const T&) const {}
};

SP_END
