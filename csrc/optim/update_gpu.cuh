// Inside the CUDA driver: what its kernels read, and the stages around rules on matrices. Nothing
// that a step decides is known to the host: scalars, norms and whether it is skipped stay on the
// device, so that a step is a row of launches, which a graph can hold.
#pragma once

#include "core/gpu.hpp"
#include "optim/update.hpp"

SP_BEGIN

namespace optim_cuda {

constexpr int threads = 256;
// Sums go over slabs, of which lane i mod `threads` adds element i: the order of the CPU's.
constexpr index slab = 16384;
constexpr index slabs_of(index size) { return (size + slab - 1) / slab; }

// What a block takes of a tensor at once.
constexpr index chunk = 2048;

#define SP_FLAG(R) by_norms<R<float>>,
constexpr bool needs_norms[] = {SP_RULES(SP_FLAG)};
#undef SP_FLAG
#define SP_COUNT(R) R<float>::states,
constexpr int states_of[] = {SP_RULES(SP_COUNT)};
#undef SP_COUNT
constexpr int rules = sizeof(states_of) / sizeof(states_of[0]);

constexpr bool on_matrices(int rule) {
    return rule == int(RuleId::Adafactor) || rule == int(RuleId::Muon);
}

struct Array {
    void* data;   // null: absent
    int strides;  // where they are among the numbers; negative: element i lies at data[i]
    Dtype dtype;
};

struct Item {
    index size, id;
    Array p, gradient, ema, copy, remainder, state[max_states];
    int rule, hyper, axes, extents, logical;  // the last two as Array::strides
    bool wide;                                // worked on in double
};

struct Status {
    double norm, factor;
    int skipped;
};

// As Scalar, without bytes that mean nothing.
struct Rate {
    const void* data;
    index wide;
};

struct Block {
    alignas(16) unsigned char bytes[rule_bytes];
};

// What lies on the device, by tensor where it is not said otherwise.
struct Device {
    const Item* items;
    const index* numbers;
    void* const* gradients;
    const double* hyper;  // by row, as the next
    const Rate* rates;
    Clock* clocks;
    Block* blocks;        // the rules' scalars,
    Block* first_blocks;  // and those of the rules that begin a step on matrices
    Status* status;
    double* sums;  // scratch
    int count;
};

// Pieces of some tensors, numbered through; `first` has each one's first.
struct Pieces {
    const int* tensors;
    const index* first;
    int count;
    index total;
};

// A tensor whose rule is on matrices.
struct MatrixPart {
    const Stream& stream;
    const Device& device;
    const StepOptions& options;
    const Tensor& tensor;
    const double* hyper;  // the rate among them may not be the one that counts
    int number;
    Pieces pieces;
};

// What a launch over some tensors reads. Around a rule on matrices `x` stands in for the parameter
// or for the gradient.
enum class Stage { whole, gather, apply };
struct Update {
    Device device;
    Pieces pieces;
    const Block* blocks;
    Stage stage;
    void* x;
    double ema_weight;
    bool zero, random;
    std::uint64_t seed;
};

// Runs an elementwise rule; `plain` where arrays lie alike, in the type that they are worked on.
template <class R>
void launch(const Stream& stream, bool plain, const Update& update);

// As gather_direction and apply_direction; a step that is skipped leaves everything as it is, `x`
// too.
template <class T>
void gather(const MatrixPart& part, RuleId first, T* x);
template <class T>
void apply(const MatrixPart& part, const T* x);

void adafactor(const MatrixPart& part);
void muon(const MatrixPart& part);

template <class T>
constexpr Dtype dtype_of = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;

// The last tensor whose first piece is not past this one.
__device__ __forceinline__ int owner(const Pieces& pieces, index piece) {
    int at = 0, above = pieces.count;
    while (above - at > 1) {
        const int middle = (at + above) / 2;
        if (pieces.first[middle] <= piece) {
            at = middle;
        } else {
            above = middle;
        }
    }
    return at;
}

// Division of 64-bit numbers is slow, and most of ours are small.
__device__ __forceinline__ index quotient(index a, index b) {
    if (((a | b) >> 32) == 0) return index(std::uint32_t(a) / std::uint32_t(b));
    return a / b;
}

// Calls f(k, where element at + k lies) for k below n.
template <class F>
__device__ __forceinline__ void for_places(const index* numbers, const Item& item, int strides,
                                           index at, int n, F&& f) {
    if (strides < 0) {
        for (int k = 0; k < n; ++k) f(k, at + k);
        return;
    }
    const index* const extents = numbers + item.extents;
    const index* const stride = numbers + strides;
    const int last = item.axes - 1;
    index offset = 0, left = 0;  // of the run along the innermost axis
    for (int k = 0; k < n; ++k) {
        if (left == 0) {
            offset = 0;
            index rest = at + k;
            for (int a = last; a >= 0; --a) {
                const index above = quotient(rest, extents[a]);
                const index position = rest - above * extents[a];
                offset += position * stride[a];
                if (a == last) left = extents[a] - position;
                rest = above;
            }
        }
        f(k, offset);
        offset += stride[last];
        --left;
    }
}

// An address that was read from memory could be of any memory; ours are of the device's. Not for
// null.
template <class T>
__device__ __forceinline__ T* global(const void* x) {
    __builtin_assume(__isGlobal(x));
    return static_cast<T*>(const_cast<void*>(x));
}

template <class T>
__device__ __forceinline__ T load_at(const Array& a, index place) {
    switch (a.dtype) {
        case Dtype::f32: return T(global<const float>(a.data)[place]);
        case Dtype::f64: return T(global<const double>(a.data)[place]);
        case Dtype::bf16: return T(widen(global<const bfloat16>(a.data)[place]));
        default: return T(widen(global<const float16>(a.data)[place]));
    }
}

template <class T>
__device__ __forceinline__ void store_at(const Array& a, index place, T x) {
    switch (a.dtype) {
        case Dtype::f32: global<float>(a.data)[place] = float(x); break;
        case Dtype::f64: global<double>(a.data)[place] = double(x); break;
        case Dtype::bf16: global<bfloat16>(a.data)[place] = rounded<bfloat16>(float(x)); break;
        default: global<float16>(a.data)[place] = rounded<float16>(float(x));
    }
}

__device__ __forceinline__ index place_of(const index* numbers, const Item& item, int strides,
                                          index i) {
    index place = i;
    if (strides >= 0) {
        for_places(numbers, item, strides, i, 1, [&](int, index at) { place = at; });
    }
    return place;
}

// Element i of a parameter, whole where its low bits lie beside it.
template <class T>
__device__ __forceinline__ T parameter(const index* numbers, const Item& item, index i) {
    const index place = place_of(numbers, item, item.p.strides, i);
    if (item.remainder.data == nullptr) return load_at<T>(item.p, place);
    const index low = place_of(numbers, item, item.remainder.strides, i);
    return T(joined(global<const bfloat16>(item.p.data)[place],
                    global<const std::int16_t>(item.remainder.data)[low]));
}

// The square of a float is exact in double, so this is also sum + x * x.
__device__ __forceinline__ double add_square(double sum, double x) { return std::fma(x, x, sum); }

// The sum over every `width` threads that follow each other, in the first of them.
__device__ __forceinline__ double folded(double sum, int width) {
    __shared__ double lane[threads];
    const int l = int(threadIdx.x);
    lane[l] = sum;
    __syncthreads();
    for (int half = width / 2; half > 0; half /= 2) {
        if ((l & (width - 1)) < half) lane[l] += lane[l + half];
        __syncthreads();
    }
    sum = lane[l];
    __syncthreads();  // `lane` is free again
    return sum;
}

// The sum of slabs' sums by the same lanes, in thread 0.
__device__ __forceinline__ double sum_of(const double* x, index n) {
    double sum = 0.0;
#pragma unroll 16
    for (index i = index(threadIdx.x); i < n; i += threads) sum += x[i];
    return folded(sum, threads);
}

}  // namespace optim_cuda

SP_END
