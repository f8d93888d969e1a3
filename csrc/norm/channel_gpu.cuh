// What the threads of a block do for channels on CUDA: sums over all of them, the coefficients that
// they share, and what becomes of sums, which the last block that adds to them sees to.
#pragma once

#include <type_traits>

#include "norm/elements_gpu.cuh"

SP_BEGIN

namespace normalization {

// Not inlined: the algebra of a channel is long, and done once.
static __device__ __noinline__ void channel_coefficients(const Task& t, Function function, index g,
                                                         index c, double* out) {
    coefficients(t, function, g, c, out);
}
static __device__ __noinline__ void set_channel_tables(const Task& t, index g, index c, double mean,
                                                       double square) {
    set_tables(t, g, c, mean, square);
}
static __device__ __noinline__ void set_channel_statistics(const Task& t, index g, index c,
                                                           double mean, double square) {
    set_statistics(t, g, c, mean, square);
}
static __device__ __noinline__ void finish_channel(const Task& t, Function function, index c) {
    finish(t, function, c);
}

// Coefficients that all lanes share, or of each lane.
template <class T, int K>
struct Same {
    T c[K];
    __device__ __forceinline__ const T* of(int) const { return c; }
};
template <class T, int K>
struct Each {
    T c[lanes][K];
    __device__ __forceinline__ const T* of(int l) const { return c[l]; }
};

template <class T, int K>
__device__ __forceinline__ void load(const double* number, Same<T, K>& c) {
#pragma unroll
    for (int k = 0; k < K; ++k) c.c[k] = T(number[k]);
}
// Calls f(ready): what all threads call, as often as each other, before they use coefficients. The
// first time it waits for those, whose thread is at work on them while others load what they need.
template <class T, int K, class G>
__device__ __forceinline__ void with_coefficients(const Task& task, Function function, index g,
                                                  index channel, Same<T, K>& c, G&& f) {
    __shared__ double number[most_coefficients];
    if (threadIdx.x == 0) channel_coefficients(task, function, g, channel, number);
    bool due = true;
    f([&] {
        if (!due) return;
        due = false;
        __syncthreads();
        load(number, c);
        __syncthreads();
    });
}
// Of lanes whose channels are so many from `first` on, below 0 where there is none: by way of a
// table that the block shares, unless it is too large.
template <class T, int K, class G>
__device__ __forceinline__ void with_coefficients(const Task& task, Function function, index g,
                                                  index first, int channels,
                                                  const int (&from_first)[lanes], Each<T, K>& c,
                                                  G&& f) {
    constexpr int most = 24576 / (K * int(sizeof(T)));
    __shared__ T table[K][most];
    double number[most_coefficients];
    bool due = channels <= most;
    if (due) {
#pragma unroll 1
        for (int p = int(threadIdx.x); p < channels; p += threads) {
            channel_coefficients(task, function, g, first + p, number);
#pragma unroll
            for (int k = 0; k < K; ++k) table[k][p] = T(number[k]);
        }
    } else {
        for (int l = 0; l < lanes; ++l) {
            channel_coefficients(task, function, g, first + std::max(from_first[l], 0), number);
#pragma unroll
            for (int k = 0; k < K; ++k) c.c[l][k] = T(number[k]);
        }
    }
    f([&] {
        if (!due) return;
        due = false;
        __syncthreads();
#pragma unroll
        for (int l = 0; l < lanes; ++l) {
#pragma unroll
            for (int k = 0; k < K; ++k) c.c[l][k] = table[k][std::max(from_first[l], 0)];
        }
        __syncthreads();
    });
}

// The sum over `among` threads that follow each other, a power of two within a warp, in all of
// them.
__device__ __forceinline__ double add_among(double x, int among) {
    for (int half = among / 2; half > 0; half /= 2) x += __shfl_xor_sync(whole_warp, x, half);
    return x;
}

// The sums over all threads, in the first warp; all may go on when it returns.
template <int m>
__device__ __forceinline__ void add_threads(double (&sum)[m]) {
    constexpr int warps = threads / warp;
    __shared__ double of_warp[m][warps];
    const int lane = int(threadIdx.x) % warp;
#pragma unroll
    for (int k = 0; k < m; ++k) {
        sum[k] = add_among(sum[k], warp);
        if (lane == 0) of_warp[k][threadIdx.x / warp] = sum[k];
    }
    __syncthreads();
    if (threadIdx.x < warp) {
#pragma unroll
        for (int k = 0; k < m; ++k) sum[k] = add_among(of_warp[k][lane % warps], warps);
    }
    __syncthreads();
}

// Where a slab keeps a sum of a channel, and how far apart sums and channels are.
struct Kept {
    index slabs, channels, sums;
    SP_HD index at(index g, index k, index c, index slab) const {
        return ((g * sums + k) * channels + c) * slabs + slab;
    }
};

// Whether this block is the last of `all` to come; it sees what the others wrote before, past the
// first-level cache.
__device__ __forceinline__ bool last_of(unsigned* ticket, index all) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(ticket, 1u) == unsigned(all - 1);
        if (last) *ticket = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

// Sums of a warp over the slabs of a channel.
static __device__ double total(const double* from, index slabs) {
    double x = 0.0;
#pragma unroll 4
    for (index s = threadIdx.x % warp; s < slabs; s += warp) x += __ldcg(from + s);
    return add_among(x, warp);
}
// Moments, from count, mean and sum of squares of each slab; about the first mean, so that equal
// ones are what they are.
static __device__ void total_moments(const double* count, const double* mean, const double* square,
                                     index slabs, double* middle, double* squares) {
    const double first = __ldcg(mean);
    double n = 0.0, offset = 0.0, x = 0.0;
#pragma unroll 4
    for (index s = threadIdx.x % warp; s < slabs; s += warp) {
        const double here = __ldcg(count + s), distance = __ldcg(mean + s) - first;
        n += here;
        if (here != 0.0) offset += here * distance;
    }
    *middle = first + add_among(offset, warp) / add_among(n, warp);
#pragma unroll 4
    for (index s = threadIdx.x % warp; s < slabs; s += warp) {
        const double here = __ldcg(count + s), d = __ldcg(mean + s) - *middle;
        const double own = __ldcg(square + s);
        if (here != 0.0) x += own + here * (d * d);
    }
    *squares = add_among(x, warp);
}

// What becomes of a pass's sums over the `own` channels from `first` on: a warp adds one up, and
// then a thread finishes it. The tables hold means and squares until they hold what follows.
template <class F>
__device__ __noinline__ void finish_channels(const Task& task, Function function, index first,
                                             int own, const Kept& kept, const double* partial) {
    constexpr bool moments = std::is_same_v<F, Moments>;
    const index groups = task.norm.shape.groups();
    double* const found = task.moments ? task.moments : task.norm.statistics;
    const bool writes = threadIdx.x % warp == 0;
    for (index u = threadIdx.x / warp; u < own * groups; u += threads / warp) {
        const index c = first + u % own, g = u / own;
        if constexpr (moments) {
            double mean, square;
            total_moments(partial + kept.at(g, 0, c, 0), partial + kept.at(g, 1, c, 0),
                          partial + kept.at(g, 2, c, 0), kept.slabs, &mean, &square);
            if (writes) {
                found[task.at(Mean, g, c)] = mean;
                found[task.at(InverseDeviation, g, c)] = square;
            }
        } else {
            for (int k = 0; k < F::sums; ++k) {
                const double x = total(partial + kept.at(g, k, c, 0), kept.slabs);
                if (writes) task.sum(first_sum(function) + k, g, c) = x;
            }
        }
    }
    __syncthreads();
    for (index c = first + threadIdx.x; c < first + own; c += threads) {
        if constexpr (moments) {
            for (index g = 0; g < groups; ++g) {
                set_channel_statistics(task, g, c, found[task.at(Mean, g, c)],
                                       found[task.at(InverseDeviation, g, c)]);
            }
        } else {
            finish_channel(task, function, c);
        }
    }
}

}  // namespace normalization

SP_END
