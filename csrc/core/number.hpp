// What formulas ask of a number: a scalar, a dual number, or a pack of scalars (norm/pack_isa.hpp).
#pragma once

#include <type_traits>

#include "core/dual.hpp"

namespace saddlepoint {

template <class T>
SP_HD bool positive(T x) {
    return real(x) > 0;
}
template <class T>
SP_HD bool negative(T x) {
    return real(x) < 0;
}
template <class T>
SP_HD bool at_most_zero(T x) {
    return real(x) <= 0;
}
template <class T>
SP_HD T select(bool which, T a, T b) {
    return which ? a : b;
}
template <class T, class F>
SP_HD T per_lane(T x, const F& f) {
    return f(x);
}

// The scalar of a number or pack, and a constant as one of those.
template <class V, class = void>
struct LaneOf {
    using type = V;
    static SP_HD V all(double x) { return V(x); }
};
template <class V>
struct LaneOf<V, std::void_t<typename V::scalar>> {
    using type = typename V::scalar;
    static SP_HD V all(double x) { return V::all(type(x)); }
};
template <class T>
struct LaneOf<Dual<T>, void> {
    using type = T;
    static SP_HD Dual<T> all(double x) { return {T(x), T(0)}; }
};
template <class V>
using lane_of = typename LaneOf<V>::type;
template <class V>
SP_HD V all(double x) {
    return LaneOf<V>::all(x);
}

}  // namespace saddlepoint
