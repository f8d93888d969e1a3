// Four elements at once, stored as S (std::uint16_t: bfloat16 or float16) and computed on as
// number<S>.
#pragma once

#include <type_traits>

#include "norm/walk_gpu.cuh"

SP_BEGIN

namespace normalization {

template <class S>
using number = std::conditional_t<sizeof(S) == 8, double, float>;

// As they lie in memory.
template <class S>
struct alignas(std::min<std::size_t>(lanes * sizeof(S), 16)) Stored {
    S of[lanes];
};

template <class S>
__device__ __forceinline__ number<S> decoded(S x, Dtype dtype) {
    if constexpr (sizeof(S) > 2) {
        return x;
    } else {
        return dtype == Dtype::bf16 ? widen(bfloat16{x}) : widen(float16{x});
    }
}
template <class S>
__device__ __forceinline__ S encoded(number<S> x, Dtype dtype) {
    if constexpr (sizeof(S) > 2) {
        return x;
    } else {
        return dtype == Dtype::bf16 ? rounded<bfloat16>(x).bits : rounded<float16>(x).bits;
    }
}

template <class S>
__device__ __forceinline__ number<S> element(const void* x, Dtype dtype, index at) {
    return decoded(static_cast<const S*>(x)[at], dtype);
}

// What an instruction moves at most.
template <class S>
using Word = std::conditional_t<sizeof(S) == 2, uint2, uint4>;
template <class S>
constexpr int words = int(sizeof(Stored<S>) / sizeof(Word<S>));

template <bool vectors, class S>
__device__ __forceinline__ Stored<S> fetch(const void* x, index at, int n) {
    Stored<S> raw{};
    if (x == nullptr || n <= 0) return raw;
    const S* const from = static_cast<const S*>(x) + at;
    if constexpr (vectors) {
#pragma unroll
        for (int k = 0; k < words<S>; ++k) {
            reinterpret_cast<Word<S>*>(&raw)[k] = reinterpret_cast<const Word<S>*>(from)[k];
        }
    } else {
#pragma unroll
        for (int l = 0; l < lanes; ++l) {
            if (l < n) raw.of[l] = from[l];
        }
    }
    return raw;
}

// Past the caches, which keep what the next pass reads.
template <bool vectors, class S>
__device__ __forceinline__ void put(void* x, index at, int n, const Stored<S>& raw) {
    S* const to = static_cast<S*>(x) + at;
    if constexpr (vectors) {
#pragma unroll
        for (int k = 0; k < words<S>; ++k) {
            __stcs(reinterpret_cast<Word<S>*>(to) + k, reinterpret_cast<const Word<S>*>(&raw)[k]);
        }
    } else {
#pragma unroll
        for (int l = 0; l < lanes; ++l) {
            if (l < n) to[l] = raw.of[l];
        }
    }
}

// Where a thread's elements are, on which line of a block's, and how many of the four there are.
struct Spot {
    index at;
    int line, n;
};

// Where what belongs to the elements of a line lies in another array.
struct Beside {
    index offset, step;
    __device__ __forceinline__ index of(const Spot& s) const {
        return offset + s.at + s.line * step;
    }
};

// What a block goes over: the tensor's elements, the bits of its gate, and a copy in shared memory.
struct Lines {
    bool vectors;
    bool paired;  // two threads that follow each other have the halves of a byte
    Beside gate;  // bits
    Beside held{};
    const char* shared = nullptr;
    index shared_bytes = 0;
};

constexpr int arrays_of(unsigned set) { return set == 0 ? 0 : int(set & 1) + arrays_of(set >> 1); }

// What a loop is compiled for. `vectors`: elements are there by fours or not at all, on addresses
// of fours. `bare`: without a residual, and without a gate to write.
template <class F, class S, bool vectors_, bool bare>
struct Form {
    static constexpr bool vectors = vectors_, gates = !bare;
    static constexpr unsigned reads = bare ? F::reads & ~(1u << RES) : F::reads;
    // Loads at once that keep the memory busy.
    static constexpr int batch =
        vectors ? std::clamp(16 / int(sizeof(S)) / arrays_of(reads), 1, 4) : 1;
};
// f(form) with the one for a pass.
template <class F, class S, class G>
__device__ __forceinline__ void with_form(const Sweep& s, bool vectors, G&& g) {
    constexpr bool bare = (F::reads >> RES & 1) == 0;
    if (!vectors) {
        g(Form<F, S, false, bare>());
    } else if (bare || (!s.in[RES] && !s.new_gate)) {
        g(Form<F, S, true, true>());
    } else if constexpr (!bare) {
        g(Form<F, S, true, false>());
    }
}

// Arrays of the set `held` are read from shared memory, where one follows the other.
template <class Form, class S, unsigned held, int N>
__device__ __forceinline__ void read(const Sweep& s, const Spot (&spot)[N], const Lines& lines,
                                     Stored<S> (&raw)[N][inputs]) {
#pragma unroll
    for (int b = 0; b < N; ++b) {
        int slot = 0;
#pragma unroll
        for (int j = 0; j < inputs; ++j) {
            if (!(Form::reads >> j & 1)) continue;
            if (held >> j & 1) {
                raw[b][j] = fetch<true, S>(lines.shared + slot++ * lines.shared_bytes,
                                           lines.held.of(spot[b]), spot[b].n);
            } else {
                raw[b][j] = fetch<Form::vectors, S>(s.in[j], spot[b].at, spot[b].n);
            }
        }
    }
}

// A lane's inputs, as far as there are any.
template <unsigned reads, class S>
__device__ __forceinline__ void decode(const Stored<S> (&raw)[inputs], Dtype dtype, int l,
                                       number<S> (&in)[inputs]) {
#pragma unroll
    for (int j = 0; j < inputs; ++j) {
        if (reads >> j & 1) in[j] = decoded(raw[j].of[l], dtype);
    }
}

}  // namespace normalization

SP_END
