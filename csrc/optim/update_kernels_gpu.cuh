// The kernels of elementwise rules, which the units that CMake makes of update_rules_gpu.cu.in
// instantiate.
#pragma once

#include <utility>

#include "core/philox.hpp"
#include "optim/update_gpu.cuh"

SP_BEGIN

namespace optim_cuda {

constexpr int four = 4;  // elements that a thread takes at once
static_assert(chunk % (four * threads) == 0, "a block takes whole rows of a chunk");

// Of tensors without a gradient only what follows them moves.
template <class R>
constexpr bool leaves_parameter = false;
template <class T>
constexpr bool leaves_parameter<Unmoved<T>> = true;

// Four elements as they are stored, those in float or double as T.
template <class T>
struct Raw {
    std::uint32_t word[sizeof(T)];
};

__device__ __forceinline__ bool is_half(Dtype dtype) { return bytes_of(dtype) == 2; }

__device__ __forceinline__ std::uint16_t half_of(const std::uint32_t* word, int k) {
    return std::uint16_t(word[k / 2] >> (16 * (k % 2)));
}

template <class T>
__device__ __forceinline__ T value_of(const std::uint32_t* word, int k) {
    if constexpr (sizeof(T) == 4) {
        return bit_cast<T>(word[k]);
    } else {
        return bit_cast<T>(std::uint64_t(word[2 * k + 1]) << 32 | word[2 * k]);
    }
}

template <class T>
__device__ __forceinline__ void set_value(std::uint32_t* word, int k, T x) {
    if constexpr (sizeof(T) == 4) {
        word[k] = bit_cast<std::uint32_t>(x);
    } else {
        const auto bits = bit_cast<std::uint64_t>(x);
        word[2 * k] = std::uint32_t(bits);
        word[2 * k + 1] = std::uint32_t(bits >> 32);
    }
}

// An array, and whether four of its elements can be read at once.
struct Operand : Array {
    bool vectors;
};

template <class T>
__device__ __forceinline__ Operand operand(const Array& a) {
    const auto address = reinterpret_cast<std::uintptr_t>(a.data);
    const bool aligned =
        is_half(a.dtype) ? address % 8 == 0 : a.dtype == dtype_of<T> && address % 16 == 0;
    return {a, a.strides < 0 && aligned};
}

// Strided, unaligned, at the end of an array, or in another type. Not inlined, to keep what is rare
// out of the loop.
template <class T>
__device__ __noinline__ Raw<T> fetch_slowly(const index* numbers, const Item& item, Array a,
                                            index at, int n) {
    Raw<T> raw{};
    for_places(numbers, item, a.strides, at, n, [&](int k, index place) {
        if (is_half(a.dtype)) {
            const std::uint32_t half = global<const std::uint16_t>(a.data)[place];
            raw.word[k / 2] |= half << (16 * (k % 2));
        } else {
            set_value(raw.word, k, load_at<T>(a, place));
        }
    });
    return raw;
}

template <class T>
__device__ __noinline__ void put_slowly(const index* numbers, const Item& item, Array a, index at,
                                        int n, Raw<T> raw) {
    for_places(numbers, item, a.strides, at, n, [&](int k, index place) {
        if (is_half(a.dtype)) {
            global<std::uint16_t>(a.data)[place] = half_of(raw.word, k);
        } else {
            store_at(a, place, value_of<T>(raw.word, k));
        }
    });
}

template <class T>
__device__ __forceinline__ Raw<T> fetch(const index* numbers, const Item& item, const Operand& o,
                                        index at, int n) {
    if (!o.vectors || n < four) return fetch_slowly<T>(numbers, item, o, at, n);
    Raw<T> raw{};
    if (is_half(o.dtype)) {
        const uint2 v = *reinterpret_cast<const uint2*>(global<std::uint16_t>(o.data) + at);
        raw.word[0] = v.x;
        raw.word[1] = v.y;
        return raw;
    }
    const auto* const from = reinterpret_cast<const uint4*>(global<T>(o.data) + at);
#pragma unroll
    for (int k = 0; k < int(sizeof(T) / 4); ++k) {
        const uint4 v = from[k];
        raw.word[4 * k] = v.x;
        raw.word[4 * k + 1] = v.y;
        raw.word[4 * k + 2] = v.z;
        raw.word[4 * k + 3] = v.w;
    }
    return raw;
}

template <class T>
__device__ __forceinline__ void put(const index* numbers, const Item& item, const Operand& o,
                                    index at, int n, const Raw<T>& raw) {
    if (!o.vectors || n < four) {
        put_slowly<T>(numbers, item, o, at, n, raw);
    } else if (is_half(o.dtype)) {
        *reinterpret_cast<uint2*>(global<std::uint16_t>(o.data) + at) =
            uint2{raw.word[0], raw.word[1]};
    } else {
        auto* const to = reinterpret_cast<uint4*>(global<T>(o.data) + at);
#pragma unroll
        for (int k = 0; k < int(sizeof(T) / 4); ++k) {
            const std::uint32_t* const w = raw.word + 4 * k;
            to[k] = uint4{w[0], w[1], w[2], w[3]};
        }
    }
}

template <class T>
__device__ __forceinline__ void decode(Dtype dtype, const Raw<T>& raw, T (&x)[four]) {
#pragma unroll
    for (int k = 0; k < four; ++k) {
        if (dtype == Dtype::bf16) {
            x[k] = T(widen(bfloat16{half_of(raw.word, k)}));
        } else if (dtype == Dtype::f16) {
            x[k] = T(widen(float16{half_of(raw.word, k)}));
        } else {
            x[k] = value_of<T>(raw.word, k);
        }
    }
}

// Random bits of four elements: field 0 is the parameter's, those after it the states'.
struct Draws {
    Philox of[four];
    __device__ __forceinline__ std::int32_t field(int k, int f) const {
        return std::int32_t(of[k].word[f / 2] >> (16 * (f % 2)) & 0xffff);
    }
};
static_assert(max_states <= 7, "a draw has eight fields of 16 bits");

static __device__ __noinline__ Draws draw(const index* numbers, const Item& item, index step,
                                          std::uint64_t seed, index at, int n) {
    Draws draws{};
    for_places(numbers, item, item.logical, at, n, [&](int k, index place) {
        const auto element = std::uint64_t(place);
        draws.of[k] = philox({{std::uint32_t(element), std::uint32_t(element >> 32),
                               std::uint32_t(step), std::uint32_t(item.id)}},
                             seed);
    });
    return draws;
}

// `random` is negative where the nearest is wanted.
static __device__ __noinline__ std::uint16_t half_slowly(Dtype dtype, float x,
                                                         std::int32_t random) {
    if (random < 0) return rounded<float16>(x).bits;
    return dtype == Dtype::bf16 ? rounded_randomly<bfloat16>(x, std::uint32_t(random)).bits
                                : rounded_randomly<float16>(x, std::uint32_t(random)).bits;
}

template <class T>
__device__ __forceinline__ Raw<T> encode(Dtype dtype, const T (&x)[four], bool random = false,
                                         const Draws& draws = {}, int field = 0) {
    Raw<T> raw{};
    if (!is_half(dtype)) {
#pragma unroll
        for (int k = 0; k < four; ++k) set_value(raw.word, k, x[k]);
        return raw;
    }
#pragma unroll
    for (int k = 0; k < four; ++k) {
        const std::uint32_t half =
            dtype == Dtype::bf16 && !random
                ? rounded<bfloat16>(float(x[k])).bits
                : half_slowly(dtype, float(x[k]), random ? draws.field(k, field) : -1);
        raw.word[k / 2] |= half << (16 * (k % 2));
    }
    return raw;
}

// A tensor's arrays as a launch sees them.
template <class T>
struct Operands {
    Operand p, gradient, ema, copy, remainder, state[max_states];
    index step;
    bool rounds;  // some are to be rounded at random
};

template <class T>
__device__ void see(const Update& u, int tensor, int states, Operands<T>& o) {
    const Item& item = u.device.items[tensor];
    const Array x{u.x, -1, dtype_of<T>};
    const Array none{nullptr, -1, dtype_of<T>};
    const bool gather = u.stage == Stage::gather;
    Array gradient = item.gradient;
    gradient.data = u.device.gradients[tensor];
    o.p = operand<T>(gather ? x : item.p);
    o.gradient = operand<T>(u.stage == Stage::apply ? x : gradient);
    o.ema = operand<T>(gather ? none : item.ema);
    o.copy = operand<T>(gather ? none : item.copy);
    o.remainder = operand<T>(gather ? none : item.remainder);
    o.step = u.device.clocks[tensor].steps;
    o.rounds = u.random && o.remainder.data == nullptr && is_half(o.p.dtype);
    for (int k = 0; k < states; ++k) {
        o.state[k] = operand<T>(item.state[k]);
        o.rounds = o.rounds || (u.random && is_half(o.state[k].dtype));
    }
}

template <class R, std::size_t... I>
__device__ __forceinline__ void update_four(const Update& u, const Item& item,
                                            const Operands<typename R::scalar>& o, const R& rule,
                                            typename R::scalar factor, index at, int n,
                                            std::index_sequence<I...>) {
    using T = typename R::scalar;
    const index* const numbers = u.device.numbers;
    // All loads come first, to have them under way together.
    const Raw<T> p_raw = fetch<T>(numbers, item, o.p, at, n);
    Raw<T> g_raw{};
    if constexpr (!leaves_parameter<R>) g_raw = fetch<T>(numbers, item, o.gradient, at, n);
    [[maybe_unused]] const Raw<T> state_raw[] = {fetch<T>(numbers, item, o.state[I], at, n)...,
                                                 Raw<T>{}};
    Raw<T> low{}, ema_raw{};
    if (o.remainder.data) low = fetch<T>(numbers, item, o.remainder, at, n);
    if (o.ema.data) ema_raw = fetch<T>(numbers, item, o.ema, at, n);

    T p[four], g[four];
    [[maybe_unused]] T state[R::states + 1][four];
    decode(o.p.dtype, p_raw, p);
    decode(o.gradient.dtype, g_raw, g);
    (decode(o.state[I].dtype, state_raw[I], state[I]), ...);
    if (o.remainder.data) {
#pragma unroll
        for (int k = 0; k < four; ++k) {
            p[k] = T(joined(bfloat16{half_of(p_raw.word, k)}, std::int16_t(half_of(low.word, k))));
        }
    }
#pragma unroll
    for (int k = 0; k < four; ++k) {
        g[k] *= factor;
        rule(p[k], g[k], state[I][k]...);
    }

    if (o.ema.data) {
        T average[four];
        decode(o.ema.dtype, ema_raw, average);
        const auto weight = T(u.ema_weight);
#pragma unroll
        for (int k = 0; k < four; ++k) average[k] = toward(average[k], p[k], weight);
        put(numbers, item, o.ema, at, n, encode(o.ema.dtype, average));
    }
    if (o.copy.data) put(numbers, item, o.copy, at, n, encode(o.copy.dtype, p));
    if constexpr (leaves_parameter<R>) return;
    Draws draws{};
    if (o.rounds) draws = draw(numbers, item, o.step, u.seed, at, n);
    (put(numbers, item, o.state[I], at, n,
         encode(o.state[I].dtype, state[I], o.rounds, draws, 1 + int(I))),
     ...);
    if (o.remainder.data) {
        Raw<T> high{};
        low = {};
#pragma unroll
        for (int k = 0; k < four; ++k) {
            const auto x = float(p[k]);
            high.word[k / 2] |= std::uint32_t(high_part(x).bits) << (16 * (k % 2));
            low.word[k / 2] |= std::uint32_t(std::uint16_t(low_part(x))) << (16 * (k % 2));
        }
        put(numbers, item, o.remainder, at, n, low);
        put(numbers, item, o.p, at, n, high);
    } else {
        put(numbers, item, o.p, at, n, encode(o.p.dtype, p, o.rounds, draws));
    }
    if (u.zero) put(numbers, item, o.gradient, at, n, Raw<T>{});
}

// Any arrays. What a block has in common lies in shared memory, since there is much of it.
template <class R>
__global__ void __launch_bounds__(threads) update_kernel(const __grid_constant__ Update u) {
    using T = typename R::scalar;
    static_assert(sizeof(R) <= rule_bytes && R::states <= max_states, "a rule's limits");
    __shared__ Operands<T> o;
    const Device& d = u.device;
    if (d.status->skipped) return;
    const auto factor = u.stage == Stage::apply ? T(1) : T(d.status->factor);
    for (index c = blockIdx.x; c < u.pieces.total; c += gridDim.x) {
        const int piece = owner(u.pieces, c), tensor = u.pieces.tensors[piece];
        if ((d.gradients[tensor] == nullptr) != leaves_parameter<R>) continue;
        __syncthreads();
        if (threadIdx.x == 0) see<T>(u, tensor, R::states, o);
        __syncthreads();
        const Item& item = d.items[tensor];
        const R rule = *reinterpret_cast<const R*>(&u.blocks[tensor]);
        const index begin = (c - u.pieces.first[piece]) * chunk;
        const index end = begin + chunk < item.size ? begin + chunk : item.size;
        for (index at = begin + four * index(threadIdx.x); at < end; at += four * threads) {
            const int n = end - at < four ? int(end - at) : four;
            update_four(u, item, o, rule, factor, at, n, std::make_index_sequence<R::states>());
        }
    }
}

template <class T>
struct alignas(16) Four {
    T x[four];
};

template <class T>
__device__ __forceinline__ Four<T> load_four(const T* data, index at, int n, bool vectors) {
    const T* const x = global<const T>(data);
    if (vectors && n == four) return *reinterpret_cast<const Four<T>*>(x + at);
    Four<T> y{};
#pragma unroll
    for (int k = 0; k < four; ++k) {
        if (k < n) y.x[k] = x[at + k];
    }
    return y;
}

template <class T>
__device__ __forceinline__ void store_four(T* data, index at, int n, bool vectors,
                                           const Four<T>& y) {
    T* const x = global<T>(data);
    if (vectors && n == four) {
        *reinterpret_cast<Four<T>*>(x + at) = y;
        return;
    }
#pragma unroll
    for (int k = 0; k < four; ++k) {
        if (k < n) x[at + k] = y.x[k];
    }
}

template <class R, std::size_t... I>
__device__ __forceinline__ void plain_chunk(const Update& u, const Item& item, const R& rule,
                                            typename R::scalar factor, void* gradient, index begin,
                                            std::index_sequence<I...>) {
    using T = typename R::scalar;
    T* const p = static_cast<T*>(item.p.data);
    T* const g = static_cast<T*>(gradient);
    T* const ema = static_cast<T*>(item.ema.data);
    [[maybe_unused]] T* const state[] = {static_cast<T*>(item.state[I].data)..., nullptr};
    const auto aligned = [](const void* x) {
        return reinterpret_cast<std::uintptr_t>(x) % 16 == 0;
    };
    const bool vectors = aligned(p) && aligned(g) && aligned(ema) && (aligned(state[I]) && ...);
    const auto weight = T(u.ema_weight);
    const index end = begin + chunk < item.size ? begin + chunk : item.size;
    for (index at = begin + four * index(threadIdx.x); at < end; at += four * threads) {
        const int n = end - at < four ? int(end - at) : four;
        Four<T> x = load_four(p, at, n, vectors);
        const Four<T> y = load_four(g, at, n, vectors);
        [[maybe_unused]] Four<T> s[] = {load_four(state[I], at, n, vectors)..., Four<T>{}};
        Four<T> average{};
        if (ema) average = load_four(ema, at, n, vectors);
#pragma unroll
        for (int k = 0; k < four; ++k) {
            const T scaled = y.x[k] * factor;
            rule(x.x[k], scaled, s[I].x[k]...);
            average.x[k] = toward(average.x[k], x.x[k], weight);
        }
        store_four(p, at, n, vectors, x);
        (store_four(state[I], at, n, vectors, s[I]), ...);
        if (ema) store_four(ema, at, n, vectors, average);
        if (u.zero) store_four(g, at, n, vectors, Four<T>{});
    }
}

// Arrays that lie alike, in the type that they are worked on.
template <class R>
__global__ void __launch_bounds__(threads) plain_kernel(const __grid_constant__ Update u) {
    using T = typename R::scalar;
    const Device& d = u.device;
    if (d.status->skipped) return;
    const auto factor = T(d.status->factor);
    for (index c = blockIdx.x; c < u.pieces.total; c += gridDim.x) {
        const int piece = owner(u.pieces, c), tensor = u.pieces.tensors[piece];
        void* const gradient = d.gradients[tensor];
        if (gradient == nullptr) continue;
        const R rule = *reinterpret_cast<const R*>(&u.blocks[tensor]);
        plain_chunk(u, d.items[tensor], rule, factor, gradient, (c - u.pieces.first[piece]) * chunk,
                    std::make_index_sequence<R::states>());
    }
}

template <class R>
void launch(const Stream& stream, bool plain, const Update& u) {
    if (u.pieces.total == 0) return;
    const unsigned blocks = grid(stream, u.pieces.total, 1);
    const cudaStream_t queue = native(stream).stream;
    if constexpr (!leaves_parameter<R>) {
        if (plain) {
            plain_kernel<R><<<blocks, threads, 0, queue>>>(u);
            check(cudaGetLastError(), "update");
            return;
        }
    }
    update_kernel<R><<<blocks, threads, 0, queue>>>(u);
    check(cudaGetLastError(), "update");
}

}  // namespace optim_cuda

SP_END
