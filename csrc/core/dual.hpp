// Dual numbers a + b*eps with eps^2 = 0: the second derivative of an elementwise function is its
// slope run on these, so it is never written by hand.
#pragma once

#include "core/config.hpp"

namespace saddlepoint {

template <class T>
struct Dual {
    T value, tangent;
};

// The real scalar that a number is made of.
template <class V>
struct ScalarOf {
    using type = V;
};
template <class T>
struct ScalarOf<Dual<T>> {
    using type = T;
};
template <class V>
using scalar_of = typename ScalarOf<V>::type;

template <class T>
SP_HD Dual<T> operator+(Dual<T> a, Dual<T> b) {
    return {a.value + b.value, a.tangent + b.tangent};
}
template <class T>
SP_HD Dual<T> operator-(Dual<T> a, Dual<T> b) {
    return {a.value - b.value, a.tangent - b.tangent};
}
template <class T>
SP_HD Dual<T> operator*(Dual<T> a, Dual<T> b) {
    return {a.value * b.value, a.value * b.tangent + a.tangent * b.value};
}
template <class T>
SP_HD Dual<T> operator-(T a, Dual<T> b) {
    return {a - b.value, -b.tangent};
}
template <class T>
SP_HD Dual<T> operator*(T a, Dual<T> b) {
    return {a * b.value, a * b.tangent};
}

template <class T>
SP_HD T real(T x) {
    return x;
}
template <class T>
SP_HD T real(Dual<T> x) {
    return x.value;
}

// A constant as a number of type V.
template <class V>
struct Constant {
    static SP_HD V of(scalar_of<V> x) { return x; }
};
template <class T>
struct Constant<Dual<T>> {
    static SP_HD Dual<T> of(T x) { return {x, T(0)}; }
};

}  // namespace saddlepoint
