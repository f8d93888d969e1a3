// The loops that update_cpu.hpp declares: a piece of one tensor, chunk by chunk.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/philox.hpp"
#include "optim/update_cpu.hpp"

SP_BEGIN

namespace SADDLEPOINT_ISA {

constexpr index lanes = 256;  // of a slab's sum of squares: fixed, so the bits are

// Elements worked on at once: an array of them is 4 KB and stays in the first cache.
template <class T>
constexpr index chunk = 4096 / sizeof(T);

template <class T>
struct Type {
    using type = T;
};

template <class F>
void with_type(Dtype dtype, F&& f) {
    switch (dtype) {
        case Dtype::f32: return f(Type<float>{});
        case Dtype::f64: return f(Type<double>{});
        case Dtype::bf16: return f(Type<bfloat16>{});
        default: return f(Type<float16>{});
    }
}

template <class T>
constexpr Dtype dtype_of = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;

// The array itself, where it can be worked on in place.
template <class T>
T* in_place(const Strided& o, index begin) {
    return o.strides || o.dtype != dtype_of<T> ? nullptr : static_cast<T*>(o.data) + begin;
}

// Calls f(i, where element begin + i lies) for i below n, as loops over runs along the innermost
// axis.
template <class F>
SP_HD void for_elements(const Tensor& t, const index* strides, index begin, index n, F&& f) {
    if (!strides) {
        for (index i = 0; i < n; ++i) f(i, begin + i);
        return;
    }
    constexpr int most_axes = 64;  // NumPy's and PyTorch's limit
    index position[most_axes], offset = 0;
    for (int a = t.axes - 1; a >= 0; --a) {
        position[a] = begin % t.extents[a];
        begin /= t.extents[a];
        offset += position[a] * strides[a];
    }
    const int last = t.axes - 1;
    const index stride = strides[last];
    for (index done = 0; done < n;) {
        const index count = std::min(n - done, t.extents[last] - position[last]);
        for (index i = 0; i < count; ++i) f(done + i, offset + i * stride);
        done += count;
        offset += count * stride;
        position[last] += count;
        for (int a = last; a > 0 && position[a] == t.extents[a]; --a) {
            position[a] = 0;
            ++position[a - 1];
            offset += strides[a - 1] - t.extents[a] * strides[a];
        }
    }
}

template <class T>
void load(const Tensor& t, const Strided& o, index begin, index n, T* out) {
    with_type(o.dtype, [&](auto type) {
        using S = typename decltype(type)::type;
        const auto* const data = static_cast<const Raw<S>*>(o.data);
        for_elements(t, o.strides, begin, n,
                     [=](index i, index at) { out[i] = T(widen(S{data[at]})); });
    });
}

template <class S, class T>
SP_HD S narrowed(T x) {
    if constexpr (sizeof(S) == 8) {
        return S(x);
    } else {
        return rounded<S>(float(x));
    }
}

// `random` is null or 16 bits an element.
template <class T>
void store(const Tensor& t, const Strided& o, index begin, index n, const T* x,
           const std::uint16_t* random) {
    with_type(o.dtype, [&](auto type) {
        using S = typename decltype(type)::type;
        auto* const data = static_cast<Raw<S>*>(o.data);
        if (random && sizeof(S) == 2) {
            for_elements(t, o.strides, begin, n, [=](index i, index at) {
                data[at] = raw(rounded_randomly<S>(float(x[i]), random[i]));
            });
        } else {
            for_elements(t, o.strides, begin, n,
                         [=](index i, index at) { data[at] = raw(narrowed<S>(x[i])); });
        }
    });
}

void load_joined(const Tensor& t, index begin, index n, float* out) {
    const auto* const high = static_cast<const Raw<bfloat16>*>(t.p.data);
    const auto* const low = static_cast<const std::int16_t*>(t.remainder.data);
    std::int16_t bits[chunk<float>];
    for_elements(t, t.remainder.strides, begin, n,
                 [=, &bits](index i, index at) { bits[i] = low[at]; });
    for_elements(t, t.p.strides, begin, n,
                 [=, &bits](index i, index at) { out[i] = joined(bfloat16{high[at]}, bits[i]); });
}

void store_split(const Tensor& t, index begin, index n, const float* x) {
    auto* const high = static_cast<Raw<bfloat16>*>(t.p.data);
    auto* const low = static_cast<std::int16_t*>(t.remainder.data);
    for_elements(t, t.remainder.strides, begin, n,
                 [=](index i, index at) { low[at] = low_part(x[i]); });
    for_elements(t, t.p.strides, begin, n,
                 [=](index i, index at) { high[at] = raw(high_part(x[i])); });
}

void clear(const Tensor& t, const Strided& o, index begin, index n) {
    const index width = bytes_of(o.dtype);
    auto* const data = static_cast<char*>(o.data);
    if (!o.strides) {
        std::memset(data + begin * width, 0, n * width);
        return;
    }
    for_elements(t, o.strides, begin, n,
                 [=](index, index at) { std::memset(data + at * width, 0, width); });
}

// Random bits of the elements: field 0 is the parameter's, those after it the states'.
template <index n_most>
void draw(const TensorStep& part, const StepOptions& options, index begin, index n,
          std::uint16_t (*out)[n_most]) {
    const Tensor& t = *part.tensor;
    alignas(64) index logical[n_most];
    index* const elements = logical;
    for_elements(t, t.logical, begin, n, [=](index i, index at) { elements[i] = at; });
    for (index i = 0; i < n; ++i) {
        const auto element = std::uint64_t(logical[i]);
        const Philox r = philox({{std::uint32_t(element), std::uint32_t(element >> 32),
                                  std::uint32_t(part.step), std::uint32_t(t.id)}},
                                options.seed);
        static_assert(max_states == 4, "a field for the parameter and each state");
        // Written out, since a loop of fields in a loop of elements does not vectorize.
        out[0][i] = std::uint16_t(r.word[0]);
        out[1][i] = std::uint16_t(r.word[0] >> 16);
        out[2][i] = std::uint16_t(r.word[1]);
        out[3][i] = std::uint16_t(r.word[1] >> 16);
        out[4][i] = std::uint16_t(r.word[2]);
    }
}

template <class R, std::size_t... I>
void apply_to(const void* rule, typename R::scalar* p, const typename R::scalar* g,
              typename R::scalar* const* state, index n, std::index_sequence<I...>) {
    using T = typename R::scalar;
    const R r = *static_cast<const R*>(rule);
    [[maybe_unused]] T* const states[] = {state[I]..., nullptr};
#pragma GCC ivdep
    for (index i = 0; i < n; ++i) r(p[i], g[i], states[I][i]...);
}

template <class R>
void apply(const void* rule, typename R::scalar* p, const typename R::scalar* g,
           typename R::scalar* const* state, index n) {
    static_assert(sizeof(R) <= rule_bytes && R::states <= max_states, "a rule's limits");
    apply_to<R>(rule, p, g, state, n, std::make_index_sequence<R::states>());
}

// What happens beside the rule in the same loop, so that all streams from memory overlap. `cleared`
// receives zeros, and may be the gradients; `average` follows the parameters. Where one is not
// wanted it is scratch.
template <class T>
struct Following {
    T factor, weight;
    T *cleared, *average;
};

template <class R, std::size_t... I>
void apply_followed_to(const void* rule, typename R::scalar* p, const typename R::scalar* g,
                       typename R::scalar* const* state, index n,
                       const Following<typename R::scalar>& following, std::index_sequence<I...>) {
    using T = typename R::scalar;
    const R r = *static_cast<const R*>(rule);
    const Following<T> f = following;
    [[maybe_unused]] T* const states[] = {state[I]..., nullptr};
#pragma GCC ivdep
    for (index i = 0; i < n; ++i) {
        const T scaled = g[i] * f.factor;
        f.cleared[i] = T(0);
        r(p[i], scaled, states[I][i]...);
        f.average[i] = toward(f.average[i], p[i], f.weight);
    }
}

template <class R>
void apply_followed(const void* rule, typename R::scalar* p, const typename R::scalar* g,
                    typename R::scalar* const* state, index n,
                    const Following<typename R::scalar>& following) {
    apply_followed_to<R>(rule, p, g, state, n, following, std::make_index_sequence<R::states>());
}

template <class T>
using Apply = void (*)(const void*, T*, const T*, T* const*, index);
#define SP_APPLY(R) &apply<R<T>>,
template <class T>
constexpr Apply<T> applies[] = {SP_RULES(SP_APPLY)};
#undef SP_APPLY
template <class T>
using ApplyFollowed = void (*)(const void*, T*, const T*, T* const*, index, const Following<T>&);
#define SP_APPLY(R) &apply_followed<R<T>>,
template <class T>
constexpr ApplyFollowed<T> applies_followed[] = {SP_RULES(SP_APPLY)};
#undef SP_APPLY
#define SP_COUNT(R) R<float>::states,
constexpr int states_of[] = {SP_RULES(SP_COUNT)};
#undef SP_COUNT

// The operands of a chunk, in place or in scratch.
template <class T>
struct Loaded {
    T *p, *state[max_states];
    const T* g;
};

// Arrays of exactly 4 KB would lie on the same lines of the first cache: each is a line longer.
template <class T>
struct Scratch {
    static constexpr index apart = chunk<T> + 64 / sizeof(T);
    alignas(64) T p[apart], g[apart], average[apart], state[max_states][apart];
    alignas(64) std::uint16_t random[1 + max_states][chunk<T>];
};

template <class T>
T* loaded(const Tensor& t, const Strided& o, index begin, index n, T* scratch) {
    if (T* const here = in_place<T>(o, begin)) return here;
    load(t, o, begin, n, scratch);
    return scratch;
}

template <class T>
Loaded<T> load_all(const Tensor& t, index begin, index n, Scratch<T>& s) {
    Loaded<T> l;
    l.p = s.p;
    if (t.remainder.data) {
        if constexpr (sizeof(T) == 4) load_joined(t, begin, n, s.p);
    } else {
        l.p = loaded(t, t.p, begin, n, s.p);
    }
    l.g = loaded(t, t.gradient, begin, n, s.g);
    for (int k = 0; k < states_of[t.rule]; ++k)
        l.state[k] = loaded(t, t.state[k], begin, n, s.state[k]);
    return l;
}

// Asks for the lines of the next piece, where arrays are converted one after the other: each alone
// would wait for memory where a piece begins.
void fetch(const Strided& o, index begin, index n) {
    if (!o.data || o.strides) return;
    const index width = bytes_of(o.dtype);
    const char* const data = static_cast<const char*>(o.data) + begin * width;
    for (index i = 0; i < n * width; i += 64) __builtin_prefetch(data + i, 0, 2);
}
void fetch_all(const Tensor& t, index begin, index n) {
    if (bytes_of(t.p.dtype) != 2) return;
    for (const Strided* o : {&t.p, &t.gradient, &t.ema, &t.remainder}) fetch(*o, begin, n);
    for (int k = 0; k < states_of[t.rule]; ++k) fetch(t.state[k], begin, n);
}

template <class T>
void store_back(const Tensor& t, const Strided& o, index begin, index n, const T* x,
                const std::uint16_t* random) {
    if (in_place<T>(o, begin) == nullptr) store(t, o, begin, n, x, random);
}

template <class T>
void store_states(const Tensor& t, index begin, index n, const Loaded<T>& l,
                  std::uint16_t (*random)[chunk<T>]) {
    for (int k = 0; k < states_of[t.rule]; ++k) {
        store_back(t, t.state[k], begin, n, l.state[k], random ? random[1 + k] : nullptr);
    }
}

template <class T>
void update_typed(const TensorStep& part, T factor, const StepOptions& options, index begin,
                  index end) {
    const Tensor& t = *part.tensor;
    const ApplyFollowed<T> apply_followed = applies_followed<T>[t.rule];
    bool plain = factor == T(1) && !options.zero && !t.ema.data && !t.copy.data &&
                 !t.remainder.data && in_place<T>(t.p, 0) && in_place<T>(t.gradient, 0);
    bool rounds = !t.remainder.data && bytes_of(t.p.dtype) == 2;
    T* state[max_states] = {};
    for (int k = 0; k < states_of[t.rule]; ++k) {
        state[k] = in_place<T>(t.state[k], begin);
        plain = plain && state[k];
        rounds = rounds || bytes_of(t.state[k].dtype) == 2;
    }
    if (plain) {
        applies<T>[t.rule](part.rule, in_place<T>(t.p, begin), in_place<T>(t.gradient, begin),
                           state, end - begin);
        return;
    }
    Scratch<T> s;
    // An average that nobody wants starts from numbers too: others could be slow.
    if (!t.ema.data) std::fill_n(s.average, chunk<T>, T(0));
    const bool alone = factor == T(1) && !t.ema.data && !options.zero;
    for (index at = begin; at < end; at += chunk<T>) {
        const index n = std::min(chunk<T>, end - at);
        fetch_all(t, at + n, std::min(chunk<T>, end - at - n));
        const Loaded<T> l = load_all(t, at, n, s);
        T* const average = t.ema.data ? loaded(t, t.ema, at, n, s.average) : s.average;
        T* const here = options.zero ? in_place<T>(t.gradient, at) : nullptr;
        if (alone) {
            applies<T>[t.rule](part.rule, l.p, l.g, l.state, n);
        } else {
            const Following<T> following{factor, T(options.ema_weight), here ? here : s.g, average};
            apply_followed(part.rule, l.p, l.g, l.state, n, following);
        }
        std::uint16_t (*random)[chunk<T>] = nullptr;
        if (options.random && rounds) {
            draw(part, options, at, n, s.random);
            random = s.random;
        }
        store_states(t, at, n, l, random);
        if (t.ema.data) store_back<T>(t, t.ema, at, n, average, nullptr);
        if (t.copy.data) store<T>(t, t.copy, at, n, l.p, nullptr);
        if (!t.remainder.data) {
            store_back<T>(t, t.p, at, n, l.p, random ? random[0] : nullptr);
        } else if constexpr (sizeof(T) == 4) {
            store_split(t, at, n, l.p);
        }
        if (options.zero && !here) clear(t, t.gradient, at, n);
    }
}

void update_piece(const TensorStep& part, double factor, const StepOptions& options, index begin,
                  index end) {
    if (part.tensor->p.dtype == Dtype::f64) {
        update_typed<double>(part, factor, options, begin, end);
    } else {
        update_typed<float>(part, float(factor), options, begin, end);
    }
}

// The square of a float is exact in double.
template <class T>
SP_HD double with_square(double sum, T x) {
    const double value = x;
    if constexpr (sizeof(T) == 8) {
        return std::fma(value, value, sum);
    } else {
        return sum + value * value;
    }
}

// Lane i mod `lanes` takes element i; `x` begins at a multiple of `lanes`.
template <class T>
void add_squares(double* __restrict lane, const T* __restrict x, index n) {
    index at = 0;
    for (; at + 4 * lanes <= n; at += 4 * lanes) {
        for (index i = 0; i < lanes; ++i) {
            const double sum = with_square(with_square(lane[i], x[at + i]), x[at + lanes + i]);
            lane[i] = with_square(with_square(sum, x[at + 2 * lanes + i]), x[at + 3 * lanes + i]);
        }
    }
    for (; at < n; at += lanes) {
        const index count = std::min(lanes, n - at);
        for (index i = 0; i < count; ++i) lane[i] = with_square(lane[i], x[at + i]);
    }
}

// Lanes past the elements are zero and would change nothing.
double folded(double* lane, index n) {
    index width = 1;
    while (width < lanes && width < n) width *= 2;
    for (index half = width / 2; half > 0; half /= 2) {
        for (index i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    return lane[0];
}

template <class T>
double squares_typed(const Tensor& t, const Strided& o, index begin, index end) {
    alignas(64) double lane[lanes];
    alignas(64) T scratch[chunk<T>];
    std::fill_n(lane, std::min(lanes, 2 * (end - begin)), 0.0);
    for (index at = begin; at < end; at += chunk<T>) {
        const index n = std::min(chunk<T>, end - at);
        if constexpr (sizeof(T) == 4) {
            if (t.remainder.data && o.data == t.p.data) {
                load_joined(t, at, n, scratch);
                add_squares(lane, scratch, n);
                continue;
            }
        }
        add_squares(lane, loaded(t, o, at, n, scratch), n);
    }
    return folded(lane, end - begin);
}

double squares(const Tensor& t, const Strided& o, index begin, index end) {
    return o.dtype == Dtype::f64 ? squares_typed<double>(t, o, begin, end)
                                 : squares_typed<float>(t, o, begin, end);
}

// Of slabs' sums, by the same lanes.
double sum_of(const double* x, index n, index stride) {
    double lane[lanes] = {};
    for (index i = 0; i < n; ++i) lane[i % lanes] += x[i * stride];
    return folded(lane, n);
}

template <class R, std::size_t... I>
void prepare_with(const TensorStep& part, typename R::scalar factor, index begin, index end,
                  double* sums, std::index_sequence<I...>) {
    using T = typename R::scalar;
    const Tensor& t = *part.tensor;
    const R r = *static_cast<const R*>(part.rule);
    Scratch<T> s;
    alignas(64) double lane[2][lanes] = {};
    for (index at = begin; at < end; at += chunk<T>) {
        const index n = std::min(chunk<T>, end - at);
        const Loaded<T> l = load_all(t, at, n, s);
        T* const direction = s.average;
        [[maybe_unused]] T* const states[] = {l.state[I]..., nullptr};
#pragma GCC ivdep
        for (index i = 0; i < n; ++i) {
            direction[i] = r.prepare(l.p[i], l.g[i] * factor, states[I][i]...);
        }
        add_squares(lane[0], l.p, n);
        add_squares(lane[1], direction, n);
        (store_back(t, t.state[I], at, n, l.state[I], nullptr), ...);
    }
    for (int k = 0; k < 2; ++k) sums[k] = folded(lane[k], lanes);
}

template <class R>
void prepare(const TensorStep& part, typename R::scalar factor, index begin, index end,
             double* sums) {
    if constexpr (by_norms<R>) {
        prepare_with<R>(part, factor, begin, end, sums, std::make_index_sequence<R::prepared>());
    }
}

template <class T>
using Prepare = void (*)(const TensorStep&, T, index, index, double*);
#define SP_PREPARE(R) &prepare<R<T>>,
template <class T>
constexpr Prepare<T> prepares[] = {SP_RULES(SP_PREPARE)};
#undef SP_PREPARE

void prepare_piece(const TensorStep& part, double factor, index begin, index end, double* sums) {
    const int rule = part.tensor->rule;
    if (part.tensor->p.dtype == Dtype::f64) {
        prepares<double>[rule](part, factor, begin, end, sums);
    } else {
        prepares<float>[rule](part, float(factor), begin, end, sums);
    }
}

}  // namespace SADDLEPOINT_ISA

SP_END
