// 64 bytes of lanes, as few of the machine's vectors as it takes: the lanes, and so the bits of a
// sum, are the same on every instruction set. Included by loops alone, since its functions exist
// once for each instruction set.
#pragma once

#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/dtype.hpp"

SP_BEGIN

namespace SADDLEPOINT_ISA {

#if defined(__AVX512F__)
#define SP_VECTOR 64
#elif defined(__AVX2__)
#define SP_VECTOR 32
#else
#define SP_VECTOR 16
#endif

template <class T>
struct Pack {
    using scalar = T;
    typedef T Vector __attribute__((vector_size(SP_VECTOR)));
    typedef T Unaligned __attribute__((vector_size(SP_VECTOR), aligned(sizeof(T)), may_alias));
    static constexpr int parts = 64 / SP_VECTOR;
    static constexpr index lanes = 64 / sizeof(T);
    static constexpr index each = lanes / parts;
    Vector part[parts];

    static SP_HD Pack all(T x) {
        Pack p;
        for (int k = 0; k < parts; ++k) p.part[k] = Vector{} + x;
        return p;
    }
};

template <class T>
struct Truth {
    using Vector = decltype(typename Pack<T>::Vector{} < typename Pack<T>::Vector{});
    Vector part[Pack<T>::parts];
};

#define SP_EACH_PART for (int k = 0; k < Pack<T>::parts; ++k)
#define SP_PACK_OPERATOR(op)                                        \
    template <class T>                                              \
    SP_HD Pack<T> operator op(const Pack<T>& a, const Pack<T>& b) { \
        Pack<T> c;                                                  \
        SP_EACH_PART c.part[k] = a.part[k] op b.part[k];            \
        return c;                                                   \
    }
SP_PACK_OPERATOR(+)
SP_PACK_OPERATOR(-)
SP_PACK_OPERATOR(*)
#undef SP_PACK_OPERATOR

template <class T>
SP_HD Truth<T> positive(const Pack<T>& x) {
    Truth<T> t;
    SP_EACH_PART t.part[k] = x.part[k] > T(0);
    return t;
}
template <class T>
SP_HD Truth<T> negative(const Pack<T>& x) {
    Truth<T> t;
    SP_EACH_PART t.part[k] = x.part[k] < T(0);
    return t;
}
template <class T>
SP_HD Truth<T> at_most_zero(const Pack<T>& x) {
    Truth<T> t;
    SP_EACH_PART t.part[k] = x.part[k] <= T(0);
    return t;
}
template <class T>
SP_HD Pack<T> select(const Truth<T>& t, const Pack<T>& a, const Pack<T>& b) {
    Pack<T> c;
    SP_EACH_PART c.part[k] = t.part[k] ? a.part[k] : b.part[k];
    return c;
}

template <class T>
SP_HD Pack<T> load(const T* x) {
    Pack<T> p;
    SP_EACH_PART p.part[k] =
        *reinterpret_cast<const typename Pack<T>::Unaligned*>(x + k * Pack<T>::each);
    return p;
}
template <class T>
SP_HD void store(T* x, const Pack<T>& p) {
    SP_EACH_PART* reinterpret_cast<typename Pack<T>::Unaligned*>(x + k * Pack<T>::each) = p.part[k];
}

// A function of each lane; the compiler vectorizes the loop. Not inlined, since it is long.
template <class F, class T>
__attribute__((noinline)) void on_lanes(T* x) {
    for (index i = 0; i < Pack<T>::lanes; ++i) x[i] = F()(x[i]);
}
template <class T, class F>
SP_HD Pack<T> per_lane(const Pack<T>& p, const F&) {
    alignas(64) T x[Pack<T>::lanes];
    store(x, p);
    on_lanes<F>(x);
    return load<T>(x);
}

// Numbers of 16 bits as floats and back, by the formulas of core/dtype.hpp: instructions where
// there are some for all lanes, which give the same bits.
#if defined(__AVX512F__)
SP_HD Pack<float> widened(__m256i bits, bfloat16) {
    return {{Pack<float>::Vector(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))}};
}
SP_HD __m256i narrowed(const Pack<float>& p, bfloat16) {
    const auto x = __m512(p.part[0]);
    const __m512i u = _mm512_castps_si512(x), half = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
    const __mmask16 odd = _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000));
    const __m512i sum = _mm512_mask_sub_epi32(half, odd, half, _mm512_set1_epi32(-1));
    const __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_mask_srli_epi32(_mm512_set1_epi32(0x7fc0), number, sum, 16));
}
SP_HD Pack<float> widened(__m256i bits, float16) {
    return {{Pack<float>::Vector(_mm512_cvtph_ps(bits))}};
}
SP_HD __m256i narrowed(const Pack<float>& p, float16) {
    const auto x = __m512(p.part[0]);
    const __m256i h = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i sign = _mm256_and_si256(h, _mm256_set1_epi16(short(0x8000)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm256_mask_blend_epi16(nan, h, _mm256_or_si256(sign, _mm256_set1_epi16(0x7e00)));
}
template <class S>
SP_HD Pack<float> widened(const std::uint16_t* x, S type) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)), type);
}
template <class S>
SP_HD void narrow(const Pack<float>& p, std::uint16_t* x, S type) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), narrowed(p, type));
}
#else
typedef std::uint16_t Shorts __attribute__((vector_size(SP_VECTOR / 2), aligned(2), may_alias));
typedef std::uint32_t Words __attribute__((vector_size(SP_VECTOR)));

SP_HD Pack<float> widened(const std::uint16_t* x, bfloat16) {
    Pack<float> p;
    for (int k = 0; k < Pack<float>::parts; ++k) {
        const auto bits = *reinterpret_cast<const Shorts*>(x + k * Pack<float>::each);
        p.part[k] = Pack<float>::Vector(__builtin_convertvector(bits, Words) << 16);
    }
    return p;
}
SP_HD void narrow(const Pack<float>& p, std::uint16_t* x, bfloat16) {
    for (int k = 0; k < Pack<float>::parts; ++k) {
        const auto u = Words(p.part[k]);
        const Words near = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
        const Words bits = p.part[k] == p.part[k] ? near : Words{} + 0x7fc0;
        *reinterpret_cast<Shorts*>(x + k * Pack<float>::each) =
            __builtin_convertvector(bits, Shorts);
    }
}
// Those of float16 are long, and not inlined.
inline __attribute__((noinline)) void widen_lanes(const std::uint16_t* x, float* y) {
    for (index i = 0; i < Pack<float>::lanes; ++i) y[i] = widen(float16{x[i]});
}
inline __attribute__((noinline)) void narrow_lanes(const float* x, std::uint16_t* y) {
    for (index i = 0; i < Pack<float>::lanes; ++i) y[i] = raw(rounded<float16>(x[i]));
}
SP_HD Pack<float> widened(const std::uint16_t* x, float16) {
    alignas(64) float y[Pack<float>::lanes];
    widen_lanes(x, y);
    return load<float>(y);
}
SP_HD void narrow(const Pack<float>& p, std::uint16_t* x, float16) {
    alignas(64) float y[Pack<float>::lanes];
    store(y, p);
    narrow_lanes(y, x);
}
#endif

// Elements of an array of storage type S, which are computed on as T.
template <class S>
using Computed = std::conditional_t<sizeof(S) == 8, double, float>;

template <class S>
struct Elements {
    using T = Computed<S>;
    static constexpr index lanes = Pack<T>::lanes;

    static SP_HD Pack<T> load(const Raw<S>* x) {
        if constexpr (std::is_same_v<Raw<S>, T>) {
            return SADDLEPOINT_ISA::load<T>(x);
        } else {
            return widened(x, S{});
        }
    }
    static SP_HD void store(Raw<S>* x, const Pack<T>& p) {
        if constexpr (std::is_same_v<Raw<S>, T>) {
            SADDLEPOINT_ISA::store<T>(x, p);
        } else {
            narrow(p, x, S{});
        }
    }
    // The first n; the other lanes are zero.
    static SP_HD Pack<T> load(const Raw<S>* x, index n) {
#if defined(__AVX512F__)
        if constexpr (sizeof(S) == 4) {
            return {{Vector(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), x))}};
        } else if constexpr (sizeof(S) == 8) {
            return {{Vector(_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), x))}};
        } else {
            return widened(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), x), S{});
        }
#else
        alignas(64) Raw<S> y[lanes] = {};
        std::memcpy(y, x, n * sizeof(S));
        return load(y);
#endif
    }
    static SP_HD void store(Raw<S>* x, index n, const Pack<T>& p) {
#if defined(__AVX512F__)
        if constexpr (sizeof(S) == 4) {
            return _mm512_mask_storeu_ps(x, __mmask16((1u << n) - 1), __m512(p.part[0]));
        } else if constexpr (sizeof(S) == 8) {
            return _mm512_mask_storeu_pd(x, __mmask8((1u << n) - 1), __m512d(p.part[0]));
        } else {
            _mm256_mask_storeu_epi16(x, __mmask16((1u << n) - 1), narrowed(p, S{}));
        }
#else
        alignas(64) Raw<S> y[lanes];
        store(y, p);
        std::memcpy(x, y, n * sizeof(S));
#endif
    }
    // Past the caches, to an address of whole packs.
    static SP_HD void stream(Raw<S>* x, const Pack<T>& p) {
#if defined(__AVX512F__)
        if constexpr (sizeof(S) == 2) {
            _mm256_stream_si256(reinterpret_cast<__m256i*>(x), narrowed(p, S{}));
        } else {
            _mm512_stream_si512(reinterpret_cast<__m512i*>(x), __m512i(p.part[0]));
        }
#elif defined(__x86_64__)
        alignas(64) Raw<S> y[lanes];
        store(y, p);
        for (index i = 0; i < lanes; i += 16 / sizeof(S)) {
            _mm_stream_si128(reinterpret_cast<__m128i*>(x + i),
                             _mm_load_si128(reinterpret_cast<const __m128i*>(y + i)));
        }
#else
        store(x, p);
#endif
    }

   private:
    using Vector = typename Pack<T>::Vector;
};

// After streaming, before others read.
SP_HD void fence_stores() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// Lanes from n on become zero.
template <class T>
SP_HD Pack<T> first(const Pack<T>& p, index n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
        const __m512 x = _mm512_maskz_mov_ps(__mmask16((1u << n) - 1), __m512(p.part[0]));
        return {{typename Pack<T>::Vector(x)}};
    } else {
        const __m512d x = _mm512_maskz_mov_pd(__mmask8((1u << n) - 1), __m512d(p.part[0]));
        return {{typename Pack<T>::Vector(x)}};
    }
#else
    alignas(64) T x[Pack<T>::lanes];
    store(x, p);
    for (index i = 0; i < Pack<T>::lanes; ++i) x[i] = i < n ? x[i] : T(0);
    return load<T>(x);
#endif
}

// One bit a lane: set where it is positive.
template <class T>
SP_HD void store_bits(std::uint8_t* bits, const Pack<T>& p) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
        const __mmask16 m = _mm512_cmp_ps_mask(__m512(p.part[0]), _mm512_setzero_ps(), _CMP_GT_OQ);
        std::memcpy(bits, &m, 2);
    } else {
        bits[0] =
            std::uint8_t(_mm512_cmp_pd_mask(__m512d(p.part[0]), _mm512_setzero_pd(), _CMP_GT_OQ));
    }
#else
    alignas(64) T x[Pack<T>::lanes];
    store(x, p);
    for (index b = 0; b < Pack<T>::lanes / 8; ++b) {
        unsigned set = 0;
        for (int i = 0; i < 8; ++i) set |= unsigned(x[8 * b + i] > T(0)) << i;
        bits[b] = std::uint8_t(set);
    }
#endif
}
// 1 where a bit is set, else 0.
template <class T>
SP_HD Pack<T> load_bits(const std::uint8_t* bits) {
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    Bits word = bits[0];
    if constexpr (sizeof(T) == 4) word |= Bits(bits[1]) << 8;
    alignas(64) T x[Pack<T>::lanes];
    for (index i = 0; i < Pack<T>::lanes; ++i) x[i] = (word >> i) & 1 ? T(1) : T(0);
    return load<T>(x);
}

#undef SP_EACH_PART

}  // namespace SADDLEPOINT_ISA

SP_END
