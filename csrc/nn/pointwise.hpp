// The elementwise functions of the layers and losses, and what instantiates them in each backend.
#pragma once

#include "core/activations.hpp"
#include "ops/map.hpp"

SP_BEGIN

namespace pointwise {

template <class T>
struct Copy {
    using scalar = T;
    static constexpr int arity = 2;
    SP_HD void operator()(T& y, const T& x) const { y = x; }
};

template <class T>
struct Multiply {
    using scalar = T;
    static constexpr int arity = 3;
    SP_HD void operator()(T& y, const T& a, const T& b) const { y = a * b; }
};

// y = a b + c d
template <class T>
struct MultiplyAdd {
    using scalar = T;
    static constexpr int arity = 5;
    SP_HD void operator()(T& y, const T& a, const T& b, const T& c, const T& d) const {
        y = a * b + c * d;
    }
};

template <class A, class T>
struct Activate {
    using scalar = T;
    static constexpr int arity = 3;
    A a;
    SP_HD void operator()(T& y, T& slope, const T& x) const {
        y = a.value(x);
        slope = a.slope(x);
    }
};

// d(slope)/dx dy: what the tangent of the backward pass adds.
template <class A, class T>
struct Curve {
    using scalar = T;
    static constexpr int arity = 3;
    A a;
    SP_HD void operator()(T& curvature, const T& x, const T& dy) const {
        curvature = a.slope(Dual<T>{x, T(1)}).tangent * dy;
    }
};

template <class T>
struct Scale {
    using scalar = T;
    static constexpr int arity = 2;
    T factor;
    SP_HD void operator()(T& y, const T& x) const { y = factor * x; }
};

}  // namespace pointwise

#define SP_POINTWISE(X) \
    X(pointwise::Copy) X(pointwise::Multiply) X(pointwise::MultiplyAdd) X(pointwise::Scale)

#define SP_POINTWISE_TYPES(F) SP_INSTANTIATE_MAP(F<float>) SP_INSTANTIATE_MAP(F<double>)
// Commas within macro arguments need names.
#define SP_POINTWISE_OF(A)                                 \
    using Activate##A##F = pointwise::Activate<A, float>;  \
    using Activate##A##D = pointwise::Activate<A, double>; \
    using Curve##A##F = pointwise::Curve<A, float>;        \
    using Curve##A##D = pointwise::Curve<A, double>;       \
    SP_INSTANTIATE_MAP(Activate##A##F)                     \
    SP_INSTANTIATE_MAP(Activate##A##D)                     \
    SP_INSTANTIATE_MAP(Curve##A##F) SP_INSTANTIATE_MAP(Curve##A##D)
#define SP_INSTANTIATE_POINTWISE SP_POINTWISE(SP_POINTWISE_TYPES) SP_ACTIVATIONS(SP_POINTWISE_OF)

SP_END
