// What happens to one element of a batch normalization, forward, backward and to second order, on
// any number type: scalars, dual numbers where an activation is differentiated twice, and packs.
//
//   h = (x - mean) r,   u = weight (alpha h + beta) + bias gamma + delta,   y = act(u + residual)
//
// alpha, beta, gamma and delta are constants of the channel: 1, 0, 1, 0, or what batch
// renormalization and noise make of them. Everything is linear in the elements once the sums over
// the channel are known, so a function takes ready coefficients; norm/coefficients.hpp has them.
#pragma once

#include "core/activations.hpp"

SP_BEGIN

namespace normalization {

struct Setting {
    double slope = 0.0;  // of what is not positive
    bool gated = false, residual = false;
    // Whether statistics depend on x, and whether z' has a part along h. Where not, what would be
    // multiplied by 0 is left out: an infinite x must not make a NaN of it.
    bool coupled = true, along_h = true;
    bool tanh = false;  // of the smooth ones
};

// Of an activation's argument: the value, a product with the slope, and with the curvature; `z` may
// stand for its sign alone where `piecewise_linear`. The gate is a number of that sign.

struct None {
    static constexpr bool piecewise_linear = true;
    template <class V>
    static SP_HD V value(const V& z, const Setting&) {
        return z;
    }
    template <class V>
    static SP_HD V gate(const V& z, const Setting&) {
        return z;
    }
    template <class V>
    static SP_HD V times_slope(const V&, const V& d, const Setting&) {
        return d;
    }
};

struct Rectified {
    static constexpr bool piecewise_linear = true;
    template <class V>
    static SP_HD V value(const V& z, const Setting&) {
        return ReLU{}.value(z);
    }
    template <class V>
    static SP_HD V gate(const V& z, const Setting&) {
        return select(at_most_zero(z), z, all<V>(1));
    }
    template <class V>
    static SP_HD V times_slope(const V& z, const V& d, const Setting&) {
        return ReLU{}.times_slope(z, d);
    }
};

// None, ReLU and LeakyReLU in one, by slopes of 1, 0 and their own: fewer functions to compile.
struct Piecewise {
    static constexpr bool piecewise_linear = true;
    template <class V>
    static SP_HD V value(const V& z, const Setting& setting) {
        return setting.slope == 0.0 ? Rectified::value(z, setting)
                                    : LeakyReLU{setting.slope}.value(z);
    }
    template <class V>
    static SP_HD V gate(const V& z, const Setting& setting) {
        return setting.slope == 0.0 ? Rectified::gate(z, setting) : z;
    }
    template <class V>
    static SP_HD V times_slope(const V& z, const V& d, const Setting& setting) {
        return setting.slope == 0.0 ? Rectified::times_slope(z, d, setting)
                                    : LeakyReLU{setting.slope}.times_slope(z, d);
    }
};

template <class A>
struct Smooth {
    static constexpr bool piecewise_linear = false;
    template <class V>
    static SP_HD V value(const V& z, const Setting&) {
        return per_lane(z, Value());
    }
    template <class V>
    static SP_HD V gate(const V& z, const Setting&) {
        return z;
    }
    template <class V>
    static SP_HD V times_slope(const V& z, const V& d, const Setting&) {
        return d * per_lane(z, Slope());
    }
    template <class V>
    static SP_HD V curvature(const V& z, const Setting&) {
        return per_lane(z, Curvature());
    }

   private:
    struct Value {
        template <class T>
        SP_HD T operator()(T x) const {
            return A{}.value(x);
        }
    };
    struct Slope {
        template <class T>
        SP_HD T operator()(T x) const {
            return A{}.slope(x);
        }
    };
    struct Curvature {
        template <class T>
        SP_HD T operator()(T x) const {
            return A{}.slope(Dual<T>{x, T(1)}).tangent;
        }
    };
};

// Each function: how many arrays it reads and writes, coefficients and sums it has, and a call
// operator (in, coefficients, out or terms, gate). The gate is the activation's argument, or a
// value of its sign where `gated`.

enum Place { X = 0, DY = 1, XT = 2, DYT = 3, RES = 4, REST = 5, inputs = 6 };
// The second direction, where there are two.
constexpr int XU = DY, RESU = DYT;

// The first coefficients are the same in all: z = (x - mean) scale + offset + residual.
enum : int { MEAN, SCALE, OFFSET, own };

template <class V>
SP_HD V argument(const V* in, const V* c, const Setting& setting) {
    const V u = (in[X] - c[MEAN]) * c[SCALE] + c[OFFSET];
    return setting.residual ? u + in[RES] : u;
}

// (x - shift, its square)
struct Moments {
    static constexpr unsigned reads = 1u << X;
    static constexpr int coefficients = 1, sums = 2;
    static constexpr bool smooth = false;
    Setting setting;
    template <class V>
    SP_HD void operator()(const V* in, const V* c, V* term, V&) const {
        const V d = in[X] - c[MEAN];
        term[0] = d;
        term[1] = d * d;
    }
};

template <class A>
struct Forward {
    static constexpr bool streams = true;
    static constexpr unsigned reads = 1u << X | 1u << RES;
    static constexpr int coefficients = own, outputs = 1;
    Setting setting;
    template <class V>
    SP_HD void operator()(const V* in, const V* c, V* out, V& gate) const {
        const V z = argument(in, c, setting);
        gate = A::gate(z, setting);
        out[0] = A::value(z, setting);
    }
};

// h = (x - mean) r + low: `low` is what the mean's rounding left over.
enum : int { R = own, LOW };
template <class V>
SP_HD V normalized(const V* in, const V* c) {
    return (in[X] - c[MEAN]) * c[R] + c[LOW];
}

// (dz, dz h) with dz = dy act'(z)
template <class A>
struct BackwardSums {
    static constexpr bool smooth = !A::piecewise_linear;
    static constexpr unsigned reads = 1u << X | 1u << DY | 1u << RES;
    static constexpr int coefficients = LOW + 1, sums = 2;
    Setting setting;
    template <class V>
    SP_HD void operator()(const V* in, const V* c, V* term, V& gate) const {
        if (!setting.gated) gate = argument(in, c, setting);
        const V dz = A::times_slope(gate, in[DY], setting);
        term[0] = dz;
        term[1] = dz * normalized(in, c);
    }
};

// (dx, dresidual): dx = c dz + c (x - mean) + c
template <class A>
struct Backward {
    static constexpr bool streams = true;
    static constexpr unsigned reads = 1u << X | 1u << DY | 1u << RES;
    static constexpr int coefficients = own + 3, outputs = 2;
    Setting setting;
    template <class V>
    SP_HD void operator()(const V* in, const V* c, V* out, V& gate) const {
        if (!setting.gated) gate = argument(in, c, setting);
        const V dz = A::times_slope(gate, in[DY], setting);
        out[0] = c[own] * dz;
        if (setting.coupled) {
            out[0] = out[0] + (c[own + 1] * (in[X] - c[MEAN]) + c[own + 2]);
        }
        out[1] = dz;
    }
};

// (x', h x')
struct TangentSums {
    static constexpr unsigned reads = 1u << X | 1u << XT;
    static constexpr int coefficients = LOW + 1, sums = 2;
    static constexpr bool smooth = false;
    Setting setting;
    template <class V>
    SP_HD void operator()(const V* in, const V* c, V* term, V&) const {
        term[0] = in[XT];
        term[1] = in[XT] * normalized(in, c);
    }
};

// z' = c x' + c (x - mean) + c + residual'
template <int Along = XT, int Residual = REST, class V>
SP_HD V argument_tangent(const V* in, const V* c, const V* own_c, const Setting& setting) {
    V rest = own_c[2];
    if (setting.along_h) rest = own_c[1] * (in[X] - c[MEAN]) + rest;
    return own_c[0] * in[Along] + rest + in[Residual];
}

template <class A>
struct Tangent {
    static constexpr bool streams = false;
    static constexpr unsigned reads = 1u << X | 1u << XT | 1u << RES | 1u << REST;
    static constexpr int coefficients = own + 3, outputs = 1;
    Setting setting;
    template <class V>
    SP_HD void operator()(const V* in, const V* c, V* out, V& gate) const {
        if (!setting.gated) gate = argument(in, c, setting);
        out[0] = A::times_slope(gate, argument_tangent(in, c, c + own, setting), setting);
    }
};

// (x', h x', dz, h dz, x' dz), and of a piecewise linear activation also (dz', h dz')
template <class A>
struct SecondSums {
    static constexpr bool smooth = !A::piecewise_linear;
    static constexpr unsigned reads =
        1u << X | 1u << DY | 1u << XT | 1u << RES | (A::piecewise_linear ? 1u << DYT : 0);
    static constexpr int coefficients = LOW + 1, sums = A::piecewise_linear ? 7 : 5;
    Setting setting;
    template <class V>
    SP_HD void operator()(const V* in, const V* c, V* term, V& gate) const {
        if (!setting.gated) gate = argument(in, c, setting);
        const V h = normalized(in, c), dz = A::times_slope(gate, in[DY], setting);
        term[0] = in[XT];
        term[1] = in[XT] * h;
        term[2] = dz;
        term[3] = dz * h;
        term[4] = dz * in[XT];
        if constexpr (A::piecewise_linear) {
            const V dzt = A::times_slope(gate, in[DYT], setting);
            term[5] = dzt;
            term[6] = dzt * h;
        }
    }
};

// dz' = dy' act'(z) + dy act''(z) z'
template <class A, class V>
SP_HD V gradient_tangent(const V* in, const V& zt, const V& gate, const Setting& setting) {
    const V dzt = A::times_slope(gate, in[DYT], setting);
    if constexpr (A::piecewise_linear) {
        return dzt;
    } else {
        return dzt + in[DY] * A::curvature(gate, setting) * zt;
    }
}

// (dz', h dz') of a smooth activation, for which z' must be known
template <class A>
struct MoreSecondSums {
    static constexpr bool smooth = !A::piecewise_linear;
    static constexpr unsigned reads =
        1u << X | 1u << DY | 1u << XT | 1u << DYT | 1u << RES | 1u << REST;
    static constexpr int coefficients = LOW + 4, sums = 2;
    Setting setting;
    template <class V>
    SP_HD void operator()(const V* in, const V* c, V* term, V& gate) const {
        gate = argument(in, c, setting);
        const V zt = argument_tangent(in, c, c + LOW + 1, setting);
        term[0] = gradient_tangent<A>(in, zt, gate, setting);
        term[1] = term[0] * normalized(in, c);
    }
};

// (dx', dresidual', y'): dx' = c dz + c dz' + c x' + c (x - mean) + c
template <class A>
struct Second {
    static constexpr bool streams = false;
    static constexpr unsigned reads =
        1u << X | 1u << DY | 1u << XT | 1u << DYT | 1u << RES | 1u << REST;
    static constexpr int coefficients = own + 8, outputs = 3;
    Setting setting;
    template <class V>
    SP_HD void operator()(const V* in, const V* c, V* out, V& gate) const {
        if (!setting.gated) gate = argument(in, c, setting);
        const V zt = argument_tangent(in, c, c + own, setting);
        const V dz = A::times_slope(gate, in[DY], setting);
        const V dzt = gradient_tangent<A>(in, zt, gate, setting);
        const V* const e = c + own + 3;
        out[0] = e[1] * dzt;
        if (setting.along_h) out[0] = e[0] * dz + out[0];
        if (setting.coupled) {
            out[0] = out[0] + (e[2] * in[XT] + (e[3] * (in[X] - c[MEAN]) + e[4]));
        }
        out[1] = dzt;
        out[2] = A::times_slope(gate, zt, setting);
    }
};

// (x', h x', x*, h x*, x' x*)
struct SecondTangentSums {
    static constexpr unsigned reads = 1u << X | 1u << XT | 1u << XU;
    static constexpr int coefficients = LOW + 1, sums = 5;
    static constexpr bool smooth = false;
    Setting setting;
    template <class V>
    SP_HD void operator()(const V* in, const V* c, V* term, V&) const {
        const V h = normalized(in, c);
        term[0] = in[XT];
        term[1] = in[XT] * h;
        term[2] = in[XU];
        term[3] = in[XU] * h;
        term[4] = in[XT] * in[XU];
    }
};

// y'* = act'(z) z'* + act''(z) z' z*, with z'* = c x' + c x* + c (x - mean) + c
template <class A>
struct SecondTangent {
    static constexpr bool streams = false;
    static constexpr unsigned reads =
        1u << X | 1u << XT | 1u << XU | 1u << RES | 1u << REST | 1u << RESU;
    static constexpr int coefficients = own + 10, outputs = 1;
    Setting setting;
    template <class V>
    SP_HD void operator()(const V* in, const V* c, V* out, V& gate) const {
        if (!setting.gated) gate = argument(in, c, setting);
        const V* const e = c + own + 6;
        V ztt = e[0] * in[XT] + e[1] * in[XU];
        if (setting.coupled) ztt = ztt + (e[2] * (in[X] - c[MEAN]) + e[3]);
        out[0] = A::times_slope(gate, ztt, setting);
        if constexpr (!A::piecewise_linear) {
            const V zt = argument_tangent(in, c, c + own, setting);
            const V zu = argument_tangent<XU, RESU>(in, c, c + own + 3, setting);
            out[0] = out[0] + A::curvature(gate, setting) * zt * zu;
        }
    }
};

}  // namespace normalization

SP_END
