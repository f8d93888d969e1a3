// Four elements at once, of any dtype, computed on in float or double.
#pragma once

#include <type_traits>

#include "norm/walk_gpu.cuh"

SP_BEGIN

namespace normalization {

// Four elements as they are stored, those in float or double as T.
template <class T>
struct Stored {
    std::uint32_t word[sizeof(T)];
};
__device__ __forceinline__ bool is_half(Dtype dtype) { return bytes_of(dtype) == 2; }

template <class T>
__device__ __forceinline__ T word_of(const Stored<T>& raw, int l) {
    if constexpr (sizeof(T) == 4) {
        return bit_cast<T>(raw.word[l]);
    } else {
        return bit_cast<T>(std::uint64_t(raw.word[2 * l + 1]) << 32 | raw.word[2 * l]);
    }
}
template <class T>
__device__ __forceinline__ void set_word(Stored<T>& raw, int l, T x) {
    if constexpr (sizeof(T) == 4) {
        raw.word[l] = bit_cast<std::uint32_t>(x);
    } else {
        const auto bits = bit_cast<std::uint64_t>(x);
        raw.word[2 * l] = std::uint32_t(bits);
        raw.word[2 * l + 1] = std::uint32_t(bits >> 32);
    }
}

template <class T>
__device__ __forceinline__ Stored<T> fetch(const void* x, Dtype dtype, bool vectors, index at,
                                           int n) {
    Stored<T> raw{};
    if (x == nullptr || n <= 0) return raw;
    if (vectors && n == lanes) {
        if (is_half(dtype)) {
            const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const char*>(x) + 2 * at);
            raw.word[0] = v.x;
            raw.word[1] = v.y;
            return raw;
        }
        const auto* const from = reinterpret_cast<const uint4*>(static_cast<const T*>(x) + at);
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
#pragma unroll
    for (int l = 0; l < lanes; ++l) {
        if (l >= n) continue;
        if (is_half(dtype)) {
            const std::uint32_t half = static_cast<const std::uint16_t*>(x)[at + l];
            raw.word[l / 2] |= half << (16 * (l % 2));
        } else {
            set_word(raw, l, static_cast<const T*>(x)[at + l]);
        }
    }
    return raw;
}

template <class T>
__device__ __forceinline__ void put(void* x, Dtype dtype, bool vectors, index at, int n,
                                    const Stored<T>& raw) {
    if (vectors && n == lanes) {
        if (is_half(dtype)) {
            *reinterpret_cast<uint2*>(static_cast<char*>(x) + 2 * at) =
                uint2{raw.word[0], raw.word[1]};
            return;
        }
        auto* const to = reinterpret_cast<uint4*>(static_cast<T*>(x) + at);
#pragma unroll
        for (int k = 0; k < int(sizeof(T) / 4); ++k) {
            const std::uint32_t* const w = raw.word + 4 * k;
            to[k] = uint4{w[0], w[1], w[2], w[3]};
        }
        return;
    }
#pragma unroll
    for (int l = 0; l < lanes; ++l) {
        if (l >= n) continue;
        if (is_half(dtype)) {
            static_cast<std::uint16_t*>(x)[at + l] =
                std::uint16_t(raw.word[l / 2] >> (16 * (l % 2)));
        } else {
            static_cast<T*>(x)[at + l] = word_of(raw, l);
        }
    }
}

template <class T>
__device__ __forceinline__ T decoded(const Stored<T>& raw, Dtype dtype, int l) {
    const auto half = std::uint16_t(raw.word[l / 2] >> (16 * (l % 2)));
    if (dtype == Dtype::bf16) return T(widen(bfloat16{half}));
    if (dtype == Dtype::f16) return T(widen(float16{half}));
    return word_of(raw, l);
}
template <class T>
__device__ __forceinline__ Stored<T> encoded(const T* x, Dtype dtype) {
    Stored<T> raw{};
#pragma unroll
    for (int l = 0; l < lanes; ++l) {
        if (is_half(dtype)) {
            const std::uint32_t half = dtype == Dtype::bf16 ? rounded<bfloat16>(float(x[l])).bits
                                                            : rounded<float16>(float(x[l])).bits;
            raw.word[l / 2] |= half << (16 * (l % 2));
        } else {
            set_word(raw, l, x[l]);
        }
    }
    return raw;
}

__device__ __forceinline__ double element(const void* x, Dtype dtype, index at) {
    switch (dtype) {
        case Dtype::f32: return double(static_cast<const float*>(x)[at]);
        case Dtype::f64: return static_cast<const double*>(x)[at];
        case Dtype::bf16: return double(widen(static_cast<const bfloat16*>(x)[at]));
        default: return double(widen(static_cast<const float16*>(x)[at]));
    }
}

// Where a thread's elements are: in the tensor, in a gate (in bits), and in shared memory; and how
// many of the four there are.
struct Spot {
    index at, bit, held;
    int n;
};

// As many loads at once as keep the memory busy.
template <class F, class T>
constexpr int batch =
    (F::reads & (F::reads - 1) & ((F::reads & (F::reads - 1)) - 1)) == 0 && sizeof(T) == 4 ? 2 : 1;

// Arrays of the set `held` are read from shared memory, where one follows the other.
template <class F, class T, unsigned held, int N>
__device__ __forceinline__ void read(const Sweep& s, const Spot (&spot)[N], bool vectors,
                                     const char* shared, index shared_bytes,
                                     T (&in)[N][lanes][inputs]) {
    Stored<T> raw[N][inputs];
#pragma unroll
    for (int b = 0; b < N; ++b) {
        int slot = 0;
#pragma unroll
        for (int j = 0; j < inputs; ++j) {
            if (!(F::reads >> j & 1)) continue;
            if (held >> j & 1) {
                raw[b][j] = fetch<T>(shared + slot++ * shared_bytes, s.dtype, true, spot[b].held,
                                     spot[b].n);
            } else {
                raw[b][j] = fetch<T>(s.in[j], s.dtype, vectors, spot[b].at, spot[b].n);
            }
        }
    }
#pragma unroll
    for (int b = 0; b < N; ++b) {
#pragma unroll
        for (int j = 0; j < inputs; ++j) {
            if (!(F::reads >> j & 1)) continue;
#pragma unroll
            for (int l = 0; l < lanes; ++l) in[b][l][j] = decoded(raw[b][j], s.dtype, l);
        }
    }
}

}  // namespace normalization

SP_END
