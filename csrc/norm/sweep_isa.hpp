// The bodies of the loops that norm/sweep_cpu.hpp declares.
#pragma once

#include <algorithm>
#include <cmath>

#include "norm/pack_isa.hpp"
#include "norm/sweep_cpu.hpp"

SP_BEGIN

namespace SADDLEPOINT_ISA {

using namespace normalization;

template <class S>
struct Storage {
    using type = S;
};
template <class F>
void with_storage(Dtype dtype, F&& f) {
    switch (dtype) {
        case Dtype::f32: return f(Storage<float>{});
        case Dtype::f64: return f(Storage<double>{});
        case Dtype::bf16: return f(Storage<bfloat16>{});
        default: return f(Storage<float16>{});
    }
}
// GELU and Tanh in one, since loops over packs only call them.
struct Called {
    static constexpr bool piecewise_linear = false;
    template <class V>
    static SP_HD V value(const V& z, const Setting& setting) {
        return setting.tanh ? Smooth<Tanh>::value(z, setting) : Smooth<GELU>::value(z, setting);
    }
    template <class V>
    static SP_HD V gate(const V& z, const Setting&) {
        return z;
    }
    template <class V>
    static SP_HD V times_slope(const V& z, const V& d, const Setting& setting) {
        return setting.tanh ? Smooth<Tanh>::times_slope(z, d, setting)
                            : Smooth<GELU>::times_slope(z, d, setting);
    }
    template <class V>
    static SP_HD V curvature(const V& z, const Setting& setting) {
        return setting.tanh ? Smooth<Tanh>::curvature(z, setting)
                            : Smooth<GELU>::curvature(z, setting);
    }
};
template <class F>
void with_loop(const Sweep& sweep, F&& f) {
    with_kind(sweep, [&](const Sweep& s, auto activation) {
        using A = decltype(activation);
        f(s, std::conditional_t<A::piecewise_linear, A, Called>());
    });
}
// To first order the commonest have loops of their own.
template <class F>
void with_first_order_loop(const Sweep& sweep, F&& f) {
    switch (sweep.activation) {
        case Activation::none: return f(sweep, None{});
        case Activation::relu: return f(sweep, Rectified{});
        default: return with_loop(sweep, f);
    }
}

// The arrays of a sweep, typed; null for one that is not there and reads as zeros.
template <class S>
struct Arrays {
    const Raw<S>* in[inputs];
    Raw<S>* out[3];
    const std::uint8_t* gate;
    std::uint8_t* new_gate;

    explicit Arrays(const Sweep& s) : gate(s.gate), new_gate(s.new_gate) {
        for (int j = 0; j < inputs; ++j) in[j] = static_cast<const Raw<S>*>(s.in[j]);
        for (int j = 0; j < 3; ++j) out[j] = static_cast<Raw<S>*>(s.out[j]);
    }
};

// How many elements ahead memory is asked for: further than the processor looks by itself. Where a
// run ends, what follows belongs to the next channel and is wanted soon.
template <class S>
constexpr index ahead = 2048 / sizeof(S);

// What a function reads at an element and after; `n` lanes where `partial`.
template <class F, class S, bool partial>
SP_HD void read(const Arrays<S>& a, index at, index n, Pack<Computed<S>>* in,
                index next = ahead<S>) {
#pragma GCC unroll 8
    for (int j = 0; j < inputs; ++j) {
        if (!(F::reads >> j & 1)) continue;
        if (j != X && !a.in[j]) {
            in[j] = Pack<Computed<S>>::all(0);
        } else if constexpr (partial) {
            in[j] = Elements<S>::load(a.in[j] + at, n);
        } else {
            in[j] = Elements<S>::load(a.in[j] + at);
            __builtin_prefetch(a.in[j] + at + next);
        }
    }
}

// The coefficients of a run: the same for all elements, or one each.
template <class T, int K>
struct Same {
    Pack<T> pack[K];
    explicit Same(const double* c) {
        for (int k = 0; k < K; ++k) pack[k] = Pack<T>::all(T(c[k]));
    }
    SP_HD const Pack<T>* at(index, Pack<T>*) const { return pack; }
};
template <class T, int K>
struct Each {
    const T* table;
    SP_HD const Pack<T>* at(index i, Pack<T>* pack) const {
#pragma GCC unroll 16
        for (int k = 0; k < K; ++k) pack[k] = load<T>(table + k * row_stride + i);
        return pack;
    }
};

template <class F, class S, class C>
void map_runs(const F& function, const Sweep& sweep, const Runs& runs, const C& coefficients) {
    using T = Computed<S>;
    using V = Pack<T>;
    constexpr index lanes = V::lanes;
    const F f = function;
    const Arrays<S> a(sweep);
    constexpr int outputs = F::outputs;
    const auto address = [&](int j, index at) {
        return reinterpret_cast<std::uintptr_t>(a.out[j] + at) % (lanes * sizeof(S));
    };
    for (index run = 0; run < runs.count; ++run) {
        const index base = runs.begin + run * runs.stride, n = runs.length;
        const index bits = runs.gate + run * runs.gate_stride;
        const index over = F::streams && sweep.stream ? address(0, base) : 0;
        const index head = over ? lanes - over / index(sizeof(S)) : 0;
        const bool streamed = F::streams && sweep.stream && over % sizeof(S) == 0 && head <= n &&
                              (over == 0 || (!a.gate && !a.new_gate));
        const auto step = [&](index i, index count, auto partial) {
            constexpr bool is_partial = decltype(partial)::value;
            V in[inputs], out[3], spare[F::coefficients], gate;
            read<F, S, is_partial>(a, base + i, count, in);
            if (a.gate) gate = load_bits<T>(a.gate + bits + i / 8);
            f(in, coefficients.at(i, spare), out, gate);
            if (a.new_gate) store_bits(a.new_gate + bits + i / 8, gate);
#pragma GCC unroll 4
            for (int j = 0; j < outputs; ++j) {
                if (j > 0 && !a.out[j]) continue;
                Raw<S>* const to = a.out[j] + base + i;
                if constexpr (is_partial) {
                    Elements<S>::store(to, count, out[j]);
                } else if (F::streams && j == 0 && streamed) {
                    Elements<S>::stream(to, out[j]);
                } else {
                    Elements<S>::store(to, out[j]);
                    __builtin_prefetch(to + ahead<S>, 1);
                }
            }
        };
        index i = 0;
        if (streamed && head > 0) {
            step(0, head, std::true_type());
            i = head;
        }
        for (; i + lanes <= n; i += lanes) step(i, lanes, std::false_type());
        if (i < n) step(i, n - i, std::true_type());
    }
    if (sweep.stream) fence_stores();
}

// Lanes are added up in pairs of packs; after so many pairs in T they move on to double.
constexpr index pairs_in_float = 32;

// Sums over runs with one set of coefficients.
template <class F, class S>
void sum_same(const F& function, const Sweep& sweep, const Runs& runs, const double* c,
              double* sums) {
    using T = Computed<S>;
    using V = Pack<T>;
    constexpr index lanes = V::lanes;
    constexpr int m = F::sums;
    const F f = function;
    const Arrays<S> a(sweep);
    const Same<T, F::coefficients> coefficients(c);
    alignas(64) double lane[m][2 * lanes] = {};
    V sum[2][m];
    const auto clear = [&] {
#pragma GCC unroll 8
        for (int k = 0; k < m; ++k) sum[0][k] = sum[1][k] = V::all(T(0));
    };
    const auto fold = [&] {
#pragma GCC unroll 8
        for (int k = 0; k < m; ++k) {
            alignas(64) T x[2 * lanes];
            store(x, sum[0][k]);
            store(x + lanes, sum[1][k]);
            for (index l = 0; l < 2 * lanes; ++l) lane[k][l] += double(x[l]);
        }
        clear();
    };
    clear();
    index pairs = 0;
    for (index run = 0; run < runs.count; ++run) {
        const index base = runs.begin + run * runs.stride, n = runs.length;
        const index bits = runs.gate + run * runs.gate_stride;
        const auto step = [&](index i, index count, V* to, auto partial) {
            constexpr bool is_partial = decltype(partial)::value;
            V in[inputs], term[m], spare[F::coefficients], gate;
            read<F, S, is_partial>(a, base + i, count, in);
            if (a.gate) gate = load_bits<T>(a.gate + bits + i / 8);
            f(in, coefficients.at(i, spare), term, gate);
#pragma GCC unroll 8
            for (int k = 0; k < m; ++k) {
                to[k] = to[k] + (is_partial ? first(term[k], count) : term[k]);
            }
        };
        constexpr auto yes = std::true_type();
        constexpr auto no = std::false_type();
        index i = 0;
        while (i + 2 * lanes <= n) {
            const index most = i + 2 * lanes * (pairs_in_float - pairs);
            const index end = std::min(n - 2 * lanes, most - 2 * lanes);
            const index from = i;
            V even[m], odd[m];  // which nobody else sees: they stay in registers
#pragma GCC unroll 8
            for (int k = 0; k < m; ++k) even[k] = sum[0][k], odd[k] = sum[1][k];
            for (; i <= end; i += 2 * lanes) {
                step(i, lanes, even, no);
                step(i + lanes, lanes, odd, no);
            }
#pragma GCC unroll 8
            for (int k = 0; k < m; ++k) sum[0][k] = even[k], sum[1][k] = odd[k];
            pairs += (i - from) / (2 * lanes);
            if (pairs == pairs_in_float) {
                fold();
                pairs = 0;
            }
        }
        if (i < n) {
            if (i + lanes <= n) {
                step(i, lanes, sum[0], no);
                i += lanes;
            }
            if (i < n) step(i, n - i, sum[1], yes);
            if (++pairs == pairs_in_float) {
                fold();
                pairs = 0;
            }
        }
    }
    fold();
    for (int k = 0; k < m; ++k) {
        for (index half = lanes; half > 0; half /= 2) {
            for (index l = 0; l < half; ++l) lane[k][l] += lane[k][l + half];
        }
        sums[k] = lane[k][0];
    }
}

// Sums over rows, element by element: float sums of up to this many rows move on to double.
constexpr index rows_in_float = 32;
// Rows for each load of coefficients and sums; few where a row is much code.
template <class F>
constexpr index rows_at_once = F::sums > 2 || F::smooth ? 2 : 8;

template <class F, class S>
void sum_each(const F& function, const Sweep& sweep, const Runs& runs, const Computed<S>* table,
              double* sums) {
    using T = Computed<S>;
    using V = Pack<T>;
    constexpr index lanes = V::lanes;
    constexpr int m = F::sums;
    const F f = function;
    const Arrays<S> a(sweep);
    const Each<T, F::coefficients> coefficients{table};
    const index n = runs.length;
    alignas(64) T part[m][row_stride];
    for (int k = 0; k < m; ++k) std::fill_n(sums + k * row_stride, n, 0.0);
    const auto add_rows = [&](index row, index rows, bool start) {
        const index base = runs.begin + row * runs.stride;
        const index bits = runs.gate + row * runs.gate_stride;
        const auto step = [&](index i, auto partial) {
            constexpr bool is_partial = decltype(partial)::value;
            V sum[m], spare[F::coefficients];
            const V* const c = coefficients.at(i, spare);
#pragma GCC unroll 8
            for (int k = 0; k < m; ++k) sum[k] = start ? V::all(T(0)) : load<T>(part[k] + i);
            for (index r = 0; r < rows; ++r) {
                V in[inputs], term[m], gate;
                read<F, S, is_partial>(a, base + r * runs.stride + i, n - i, in,
                                       rows * runs.stride);
                if (a.gate) gate = load_bits<T>(a.gate + bits + r * runs.gate_stride + i / 8);
                f(in, c, term, gate);
#pragma GCC unroll 8
                for (int k = 0; k < m; ++k) sum[k] = sum[k] + term[k];
            }
#pragma GCC unroll 8
            for (int k = 0; k < m; ++k) store<T>(part[k] + i, sum[k]);
        };
        index i = 0;
        for (; i + lanes <= n; i += lanes) step(i, std::false_type());
        if (i < n) step(i, std::true_type());
    };
    for (index row = 0; row < runs.count;) {
        const index end = std::min(row + rows_in_float, runs.count);
        bool start = true;
        for (; row < end; row += rows_at_once<F>, start = false) {
            add_rows(row, std::min(rows_at_once<F>, end - row), start);
        }
        for (int k = 0; k < m; ++k) {
            for (index i = 0; i < n; ++i) sums[k * row_stride + i] += double(part[k][i]);
        }
    }
}

template <class F>
void map_one(const Sweep& sweep, const Runs& runs, const double* one, const void* each) {
    const F f{sweep.setting};
    with_storage(sweep.dtype, [&](auto storage) {
        using S = typename decltype(storage)::type;
        using T = Computed<S>;
        if (one) {
            map_runs<F, S>(f, sweep, runs, Same<T, F::coefficients>(one));
        } else {
            map_runs<F, S>(f, sweep, runs, Each<T, F::coefficients>{static_cast<const T*>(each)});
        }
    });
}

template <class F>
void sum_one(const Sweep& sweep, const Runs& runs, const double* one, const void* each,
             double* sums) {
    const F f{sweep.setting};
    with_storage(sweep.dtype, [&](auto storage) {
        using S = typename decltype(storage)::type;
        if (one) {
            sum_same<F, S>(f, sweep, runs, one, sums);
        } else {
            sum_each<F, S>(f, sweep, runs, static_cast<const Computed<S>*>(each), sums);
        }
    });
}

}  // namespace SADDLEPOINT_ISA

SP_END
