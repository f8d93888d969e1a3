#include "norm/exactly_cpu.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "norm/fused.hpp"

SP_BEGIN

namespace normalization {

namespace {

// Squares of floats whose sum is less, for each element, may have been too small for them.
constexpr double vanishing = 1e-30;

Values array(const void* x, const Sweep& sweep) { return {const_cast<void*>(x), sweep.dtype}; }

// f(element, its bit), in the order of memory.
template <class F>
void for_each(const Runs& runs, int bit, F&& f) {
    for (index run = 0; run < runs.count; ++run) {
        const index at = runs.begin + run * runs.stride;
        const index bits = 8 * (runs.gate + run * runs.gate_stride) + bit;
        for (index i = 0; i < runs.length; ++i) f(at + i, bits + i);
    }
}

// Calls f(inputs, gate, element, its bit).
template <unsigned reads, class F>
void for_inputs(const Sweep& sweep, const Runs& runs, int bit, F&& f) {
    for_each(runs, bit, [&](index at, index at_bit) {
        double in[inputs];
        for (int j = 0; j < inputs; ++j) {
            in[j] = reads >> j & 1 ? array(sweep.in[j], sweep).get(at, 0.0) : 0.0;
        }
        double gate = sweep.gate ? double(sweep.gate[at_bit / 8] >> at_bit % 8 & 1) : 0.0;
        f(in, gate, at, at_bit);
    });
}

template <class F>
void map_one(const Sweep& sweep, const Runs& runs, int bit, const double* c) {
    const F function{sweep.setting};
    for_inputs<F::reads>(sweep, runs, bit, [&](const double* in, double gate, index at, index b) {
        double out[F::outputs];
        function(in, c, out, gate);
        for (int j = 0; j < F::outputs; ++j) array(sweep.out[j], sweep).set(at, out[j]);
        if (sweep.new_gate) {
            const unsigned mask = 1u << b % 8, others = sweep.new_gate[b / 8] & ~mask;
            sweep.new_gate[b / 8] = std::uint8_t(others | (gate > 0.0 ? mask : 0u));
        }
    });
}

template <class F>
void sum_one(const Sweep& sweep, const Runs& runs, int bit, const double* c, double* sums) {
    const F function{sweep.setting};
    std::fill_n(sums, F::sums, 0.0);
    for_inputs<F::reads>(sweep, runs, bit, [&](const double* in, double gate, index, index) {
        double term[F::sums];
        function(in, c, term, gate);
        for (int k = 0; k < F::sums; ++k) sums[k] += term[k];
    });
}

// Whether x is one number, as a dead channel is: of what follows each other, memory is compared.
bool constant(const Sweep& sweep, const Runs& runs) {
    const index width = bytes_of(sweep.dtype);
    const char* const first = static_cast<const char*>(sweep.in[X]) + runs.begin * width;
    for (index run = 0; run < runs.count; ++run) {
        const char* const x = first + run * runs.stride * width;
        if (std::memcmp(x, first, width) != 0) return false;
        if (std::memcmp(x, x + width, (runs.length - 1) * width) != 0) return false;
    }
    return true;
}

}  // namespace

void map_exactly(const Sweep& sweep, const Runs& runs, int bit, const double* c) {
    with_kind(sweep, [&](const Sweep& s, auto activation) {
        using A = decltype(activation);
        switch (s.function) {
            case Function::forward: return map_one<Forward<A>>(s, runs, bit, c);
            case Function::backward: return map_one<Backward<A>>(s, runs, bit, c);
            case Function::tangent: return map_one<Tangent<A>>(s, runs, bit, c);
            case Function::second_tangent: return map_one<SecondTangent<A>>(s, runs, bit, c);
            default: return map_one<Second<A>>(s, runs, bit, c);
        }
    });
}

void sum_exactly(const Sweep& sweep, const Runs& runs, int bit, const double* c, double* sums) {
    with_kind(sweep, [&](const Sweep& s, auto activation) {
        using A = decltype(activation);
        switch (s.function) {
            case Function::moments: {
                const double shift = array(s.in[X], s).get(runs.begin, 0.0);
                sum_one<Moments>(s, runs, bit, &shift, sums);
                const double offset = sums[0] / double(runs.size());
                sums[1] = std::max(sums[1] - sums[0] * offset, 0.0);
                sums[0] = shift + offset;
                return;
            }
            case Function::backward_sums: return sum_one<BackwardSums<A>>(s, runs, bit, c, sums);
            case Function::tangent_sums: return sum_one<TangentSums>(s, runs, bit, c, sums);
            case Function::second_tangent_sums:
                return sum_one<SecondTangentSums>(s, runs, bit, c, sums);
            case Function::second_sums: return sum_one<SecondSums<A>>(s, runs, bit, c, sums);
            default:
                if constexpr (!A::piecewise_linear) {
                    sum_one<MoreSecondSums<A>>(s, runs, bit, c, sums);
                }
        }
    });
}

bool untrusted(const Sweep& sweep, const Runs& runs, const double* sums, int number) {
    if (sweep.dtype == Dtype::f64) return false;
    if (!std::all_of(sums, sums + number, [](double x) { return std::isfinite(x); })) return true;
    const bool small =
        sweep.function == Function::moments && sums[1] < vanishing * double(runs.size());
    return small && !constant(sweep, runs);
}

bool any_untrusted(const Sweep& sweep, const Runs& runs, const double* sums, int number) {
    if (sweep.dtype == Dtype::f64) return false;
    constexpr double most = std::numeric_limits<double>::max();
    const double least =
        sweep.function == Function::moments ? vanishing * double(runs.count) : -most;
    index bad = 0;
    for (int k = 0; k < number; ++k) {
        const double* const row = sums + k * row_stride;
        const double bound = k == 1 ? least : -most;
        for (index i = 0; i < runs.length; ++i) bad += !(row[i] >= bound && row[i] <= most);
    }
    return bad != 0;
}

}  // namespace normalization

SP_END
