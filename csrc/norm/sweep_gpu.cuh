// The loops of norm/sweep.hpp on CUDA. Every thread takes four neighbouring elements at once; the
// threads that follow each other take one stretch of a run. Where runs are channels, a block stays
// with one of them; where they are rows, a thread stays with its four channels.
#pragma once

#include <type_traits>

#include "norm/elements_gpu.cuh"
#include "norm/walk_gpu.cuh"

SP_BEGIN

namespace normalization {

// A smooth activation is long in double, and called.
template <class F>
__host__ __device__ __noinline__ double called(double x, const F& f) {
    return f(x);
}
template <class F>
SP_HD double per_lane(double x, const F& f) {
    return called(x, f);
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

__device__ __forceinline__ unsigned gate_bits(const Sweep& s, const Spot& spot) {
    return s.gate && spot.n > 0 ? unsigned(s.gate[spot.bit / 8]) >> (spot.bit % 8) : 0u;
}

// `paired`: two threads that follow each other have the halves of a byte.
template <class F, class T, unsigned held, int N, class C>
__device__ __forceinline__ void map_spots(const F& f, const Sweep& s, const Spot (&spot)[N],
                                          bool vectors, bool paired, const C& c,
                                          const char* shared = nullptr, index shared_bytes = 0) {
    T in[N][lanes][inputs];
    read<F, T, held>(s, spot, vectors, shared, shared_bytes, in);
#pragma unroll
    for (int b = 0; b < N; ++b) {
        T out[F::outputs][lanes];
        const unsigned gates = gate_bits(s, spot[b]);
        unsigned new_gates = 0;
#pragma unroll
        for (int l = 0; l < lanes; ++l) {
            T gate = T(gates >> l & 1), one[F::outputs];
            f(in[b][l], c.of(l), one, gate);
            new_gates |= l < spot[b].n && gate > T(0) ? 1u << l : 0u;
#pragma unroll
            for (int j = 0; j < F::outputs; ++j) out[j][l] = one[j];
        }
        if (s.new_gate) {
            const unsigned beside = __shfl_down_sync(whole_warp, new_gates, 1);
            if (paired) new_gates |= beside << lanes;
            if (spot[b].n > 0 && (!paired || threadIdx.x % 2 == 0)) {
                s.new_gate[spot[b].bit / 8] = std::uint8_t(new_gates);
            }
        }
#pragma unroll
        for (int j = 0; j < F::outputs; ++j) {
            if (!s.out[j] || spot[b].n <= 0) continue;
            put(s.out[j], s.dtype, vectors, spot[b].at, spot[b].n, encoded(out[j], s.dtype));
        }
    }
}

// Adds the terms of each lane to `sum`.
template <class F, class T, unsigned held, int N, class C>
__device__ __forceinline__ void sum_spots(const F& f, const Sweep& s, const Spot (&spot)[N],
                                          bool vectors, const C& c, T (&sum)[F::sums][lanes],
                                          const char* shared = nullptr, index shared_bytes = 0) {
    T in[N][lanes][inputs];
    read<F, T, held>(s, spot, vectors, shared, shared_bytes, in);
#pragma unroll
    for (int b = 0; b < N; ++b) {
        const unsigned gates = gate_bits(s, spot[b]);
#pragma unroll
        for (int l = 0; l < lanes; ++l) {
            T gate = T(gates >> l & 1), term[F::sums];
            f(in[b][l], c.of(l), term, gate);
#pragma unroll
            for (int k = 0; k < F::sums; ++k) sum[k][l] += l < spot[b].n ? term[k] : T(0);
        }
    }
}

// Adds the terms of some elements in double: for sums that left the range of float.
template <class F>
__device__ __noinline__ void add_exactly(const F& f, const Sweep& s, index at, index bit,
                                         index stride, index bit_stride, index count,
                                         const double* c, double* sum) {
    for (index i = 0; i < count; ++i, at += stride, bit += bit_stride) {
        double in[inputs], term[F::sums];
        double gate = s.gate ? double(s.gate[bit / 8] >> (bit % 8) & 1) : 0.0;
        for (int j = 0; j < inputs; ++j) {
            in[j] = (F::reads >> j & 1) && s.in[j] ? element(s.in[j], s.dtype, at) : 0.0;
        }
        f(in, c, term, gate);
        for (int k = 0; k < F::sums; ++k) sum[k] += term[k];
    }
}
// Whether sums in float cannot be trusted: they overflowed, or squares vanished.
template <class F>
__device__ __forceinline__ bool untrusted(const double* sum, index n) {
    bool finite = true;
    for (int k = 0; k < F::sums; ++k) finite = finite && std::isfinite(sum[k]);
    if (std::is_same_v<F, Moments>) {
        return !finite || (sum[0] != 0.0 && sum[1] < 1e-30 * double(n));
    }
    return !finite;
}

// What moments are taken about: the mean of the first elements, which keeps the digits of squares
// whatever the mean is.
template <class T>
__device__ __forceinline__ double shift_of(const Sweep& s, index at, index stride, index n) {
    const int few = n < lanes ? 1 : lanes;
    double sum = 0.0;
    for (int i = 0; i < few; ++i) sum += element(s.in[X], s.dtype, at + i * stride);
    return double(T(sum / few));
}

// A slab's sums of a channel, to where it keeps them.
template <class F>
__device__ __forceinline__ void keep(const double* sum, index n, double shift, double* to,
                                     index channels) {
    if constexpr (std::is_same_v<F, Moments>) {
        const double offset = n ? sum[0] / double(n) : 0.0, square = sum[1] - sum[0] * offset;
        to[0] = double(n);
        to[channels] = shift + offset;
        to[2 * channels] = square < 0.0 ? 0.0 : square;  // a NaN stays
    } else {
        for (int k = 0; k < F::sums; ++k) to[k * channels] = sum[k];
    }
}
template <class F>
constexpr int partials = std::is_same_v<F, Moments> ? 3 : F::sums;

// A piece of a channel.
struct Piece {
    index g, c, slab;
    index begin, end;   // stretches
    index first, gate;  // element and bit of the group's first run
    index elements;
};

__device__ __forceinline__ Piece piece_of(const Planes& p, index item) {
    Piece piece;
    piece.c = item % p.shape.channels;
    const index rest = item / p.shape.channels;
    piece.g = rest % p.groups;
    piece.slab = rest / p.groups;
    const index all = p.shape.outer_of(piece.g) * p.stretches;
    piece.begin = piece.slab * p.each < all ? piece.slab * p.each : all;
    piece.end = piece.begin + p.each < all ? piece.begin + p.each : all;
    const index run = piece.g * p.shape.group * p.shape.channels + piece.c;
    piece.first = run * p.shape.inner;
    piece.gate = 8 * run * p.bits;
    piece.elements = p.before(piece.end) - p.before(piece.begin);
    return piece;
}

// Calls f(spots) for the stretches of a piece, the same number of times in all threads.
template <int N, class F>
__device__ __forceinline__ void for_stretches(const Planes& p, const Piece& piece, F&& f) {
    const int step = int(blockDim.x) / p.width, mine = int(threadIdx.x) / p.width;
    const index into = index(int(threadIdx.x) % p.width) * lanes;
    const index runs_step = step / p.stretches, parts_step = step % p.stretches;
    const index stride = p.shape.channels * p.shape.inner,
                gate_stride = 8 * p.shape.channels * p.bits;
    const index padded = (p.shape.inner + lanes - 1) / lanes * lanes;
    index q = piece.begin + mine, run = q / p.stretches, part = q % p.stretches;
    for (index base = piece.begin; base < piece.end; base += N * step) {
        Spot spot[N];
#pragma unroll
        for (int b = 0; b < N; ++b) {
            const index i = part * p.stretch() + into, left = p.shape.inner - i;
            spot[b].n = q >= piece.end || left <= 0 ? 0 : left < lanes ? int(left) : lanes;
            spot[b].at = piece.first + run * stride + i;
            spot[b].bit = piece.gate + run * gate_stride + i;
            spot[b].held = run * padded + i;
            q += step;
            run += runs_step;
            part += parts_step;
            if (part >= p.stretches) {
                part -= p.stretches;
                ++run;
            }
        }
        f(spot);
    }
}

template <class T, int K>
__device__ __forceinline__ void load_coefficients(const void* table, index size, index at, T* c) {
    const T* const from = static_cast<const T*>(table) + at;
#pragma unroll
    for (int k = 0; k < K; ++k) c[k] = from[k * size];
}

// The sums over all threads, in the first; all threads may go on when it returns.
template <int m>
__device__ __forceinline__ void add_threads(double (&sum)[m]) {
    __shared__ double of_warp[m][warp];
    const int w = int(threadIdx.x) / warp, warps = int(blockDim.x) / warp;
#pragma unroll
    for (int k = 0; k < m; ++k) {
#pragma unroll
        for (int half = warp / 2; half > 0; half /= 2) {
            sum[k] += __shfl_down_sync(whole_warp, sum[k], half);
        }
        if (threadIdx.x % warp == 0) of_warp[k][w] = sum[k];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int k = 0; k < m; ++k) {
            sum[k] = of_warp[k][0];
            for (int i = 1; i < warps; ++i) sum[k] += of_warp[k][i];
        }
    }
    __syncthreads();
}

template <class F, class T, unsigned held>
__device__ __forceinline__ void sum_piece(const F& f, const Sweep& s, const Planes& p,
                                          const Piece& piece, bool vectors,
                                          const Same<T, F::coefficients>& c,
                                          double (&total)[F::sums], const char* shared = nullptr,
                                          index shared_bytes = 0) {
    constexpr int m = F::sums, N = batch<F, T>;
    T sum[m][lanes] = {};
#pragma unroll
    for (int k = 0; k < m; ++k) total[k] = 0.0;
    int added = 0;
    index n = 0;
    const auto fold = [&] {
#pragma unroll
        for (int k = 0; k < m; ++k) {
            total[k] +=
                (double(sum[k][0]) + double(sum[k][1])) + (double(sum[k][2]) + double(sum[k][3]));
#pragma unroll
            for (int l = 0; l < lanes; ++l) sum[k][l] = T(0);
        }
        added = 0;
    };
    for_stretches<N>(p, piece, [&](const Spot(&spot)[N]) {
        sum_spots<F, T, held>(f, s, spot, vectors, c, sum, shared, shared_bytes);
#pragma unroll
        for (int b = 0; b < N; ++b) n += spot[b].n;
        added += N;
        if (added >= additions) fold();
    });
    fold();
    if (sizeof(T) == 4 && untrusted<F>(total, n)) {
        double wide[F::coefficients];
        for (int k = 0; k < F::coefficients; ++k) wide[k] = double(c.c[k]);
        for (int k = 0; k < m; ++k) total[k] = 0.0;
        for_stretches<1>(p, piece, [&](const Spot(&spot)[1]) {
            add_exactly(f, s, spot[0].at, spot[0].bit, 1, 1, spot[0].n, wide, total);
        });
    }
    add_threads(total);
}

template <class F, class T>
__global__ void __launch_bounds__(threads)
    sum_planes(const __grid_constant__ Sweep s, const __grid_constant__ Planes p, bool vectors,
               bool backward, const void* table, double* partial) {
    constexpr int m = F::sums;
    const F f{s.setting};
    const index items = p.items(), size = p.groups * p.shape.channels;
    for (index u = blockIdx.x; u < items; u += gridDim.x) {
        const Piece piece = piece_of(p, backward ? items - 1 - u : u);
        Same<T, F::coefficients> c;
        double total[m], shift = 0.0;
        if constexpr (std::is_same_v<F, Moments>) {
            // An empty piece is one of a smaller group, at whose end it would read.
            const index run = piece.begin / p.stretches;
            const index into = piece.begin % p.stretches * p.stretch();
            const index at = piece.first + run * p.shape.channels * p.shape.inner + into;
            const index left = p.shape.inner - into;
            if (piece.elements) shift = shift_of<T>(s, at, 1, left);
            c.c[MEAN] = T(shift);
        } else {
            load_coefficients<T, F::coefficients>(table, size, piece.g * p.shape.channels + piece.c,
                                                  c.c);
        }
        sum_piece<F, T, 0>(f, s, p, piece, vectors, c, total);
        if (threadIdx.x == 0) {
            double* const to = partial +
                               (piece.slab * p.groups + piece.g) * partials<F> * p.shape.channels +
                               piece.c;
            keep<F>(total, piece.elements, shift, to, p.shape.channels);
        }
    }
}

template <class F, class T>
__global__ void __launch_bounds__(threads)
    map_planes(const __grid_constant__ Sweep s, const __grid_constant__ Planes p, bool vectors,
               bool backward, const void* table) {
    constexpr int N = batch<F, T>;
    const F f{s.setting};
    const index items = p.items(), size = p.groups * p.shape.channels;
    for (index u = blockIdx.x; u < items; u += gridDim.x) {
        const Piece piece = piece_of(p, backward ? items - 1 - u : u);
        Same<T, F::coefficients> c;
        load_coefficients<T, F::coefficients>(table, size, piece.g * p.shape.channels + piece.c,
                                              c.c);
        for_stretches<N>(p, piece, [&](const Spot(&spot)[N]) {
            map_spots<F, T, 0>(f, s, spot, vectors, p.width > 1, c);
        });
    }
}

// The rows of a slab that a tile looks at.
struct Slab {
    index g, slab, tile;
    index count, length;  // rows, and their elements
    index first, gate;    // element and bit of the first one
    index gate_stride;    // bits
    index single;         // rows as the tensor has them
};

__device__ __forceinline__ Slab slab_of(const Tiles& t, index item) {
    Slab s;
    s.tile = item % t.tiles;
    const index above = item / t.tiles;
    s.g = above % t.groups;
    s.slab = above / t.groups;
    const index rows = t.shape.outer_of(s.g), whole = rows / t.wide;
    const bool rest = t.wide > 1 && s.slab == t.slabs - 1;
    const index begin = rest ? whole : s.slab * t.each < whole ? s.slab * t.each : whole;
    const index left = rest ? rows - whole * t.wide : whole - begin;
    s.count = rest || left < t.each ? left : t.each;
    s.length = rest ? t.shape.channels : t.width;
    s.single = rest ? s.count : s.count * t.wide;
    s.first = (s.g * t.shape.group + begin * t.wide) * t.shape.channels;
    s.gate = 8 * (s.g * t.group_bits + begin * bits_of_run(t.width));
    s.gate_stride = 8 * bits_of_run(s.length);
    return s;
}

// Calls f(spots) for the rows of a slab, the same number of times in all threads.
template <int N, class F>
__device__ __forceinline__ void for_rows(const Tiles& t, const Slab& slab, index i, F&& f) {
    const int step = threads / t.across, mine = int(threadIdx.x) / t.across;
    const index left = slab.length - i;
    const int n = left <= 0 ? 0 : left < lanes ? int(left) : lanes;
    for (index base = 0; base < slab.count; base += N * step) {
        Spot spot[N];
#pragma unroll
        for (int b = 0; b < N; ++b) {
            const index row = base + b * step + mine;
            spot[b].n = row < slab.count ? n : 0;
            spot[b].at = slab.first + row * slab.length + i;
            spot[b].bit = slab.gate + row * slab.gate_stride + i;
            spot[b].held = 0;
        }
        f(spot);
    }
}

template <class T, int K>
__device__ __forceinline__ void load_each(const Tiles& t, const Slab& slab, index i,
                                          const void* table, Each<T, K>& c) {
    const index channels = t.shape.channels, size = t.groups * channels;
#pragma unroll
    for (int l = 0; l < lanes; ++l) {
        const index channel = i + l < slab.length ? (i + l) % channels : 0;
        load_coefficients<T, K>(table, size, slab.g * channels + channel, c.c[l]);
    }
}

template <class F, class T>
__global__ void __launch_bounds__(threads)
    map_rows(const __grid_constant__ Sweep s, const __grid_constant__ Tiles t, bool vectors,
             bool backward, const void* table) {
    constexpr int N = batch<F, T>;
    const F f{s.setting};
    const index items = t.items();
    for (index u = blockIdx.x; u < items; u += gridDim.x) {
        const Slab slab = slab_of(t, backward ? items - 1 - u : u);
        const index i = (slab.tile * t.across + int(threadIdx.x) % t.across) * lanes;
        Each<T, F::coefficients> c;
        load_each(t, slab, i, table, c);
        const bool aligned = vectors && slab.length % lanes == 0;
        for_rows<N>(t, slab, i, [&](const Spot(&spot)[N]) {
            map_spots<F, T, 0>(f, s, spot, aligned, t.across > 1, c);
        });
    }
}

template <class F, class T>
__global__ void __launch_bounds__(threads)
    sum_rows(const __grid_constant__ Sweep s, const __grid_constant__ Tiles t, bool vectors,
             bool backward, const void* table, double* partial) {
    constexpr int m = F::sums, N = batch<F, T>;
    __shared__ double part[threads * lanes];
    const F f{s.setting};
    const index items = t.items(), channels = t.shape.channels;
    const int mine = int(threadIdx.x) % t.across, row = int(threadIdx.x) / t.across;
    const int positions = t.across * lanes, deep = threads / t.across;
    for (index u = blockIdx.x; u < items; u += gridDim.x) {
        const Slab slab = slab_of(t, backward ? items - 1 - u : u);
        const index i = (slab.tile * t.across + mine) * lanes;
        const bool aligned = vectors && slab.length % lanes == 0;
        Each<T, F::coefficients> c;
        if constexpr (std::is_same_v<F, Moments>) {
#pragma unroll
            for (int l = 0; l < lanes; ++l) {
                const index channel = (i + l) % channels;
                c.c[l][MEAN] = slab.count && i + l < slab.length
                                   ? T(shift_of<T>(s, slab.first + channel, channels, slab.single))
                                   : T(0);
            }
        } else {
            load_each(t, slab, i, table, c);
        }
        T sum[m][lanes] = {};
        for_rows<N>(t, slab, i,
                    [&](const Spot(&spot)[N]) { sum_spots<F, T, 0>(f, s, spot, aligned, c, sum); });
        double total[lanes][m];
#pragma unroll
        for (int l = 0; l < lanes; ++l) {
#pragma unroll
            for (int k = 0; k < m; ++k) total[l][k] = double(sum[k][l]);
            const index n = slab.count > row ? (slab.count - row + deep - 1) / deep : 0;
            if (sizeof(T) == 4 && i + l < slab.length && untrusted<F>(total[l], n)) {
                double wide[F::coefficients];
                for (int k = 0; k < F::coefficients; ++k) wide[k] = double(c.c[l][k]);
                for (int k = 0; k < m; ++k) total[l][k] = 0.0;
                add_exactly(f, s, slab.first + row * slab.length + i + l,
                            slab.gate + row * slab.gate_stride + i + l, deep * slab.length,
                            deep * slab.gate_stride, n, wide, total[l]);
            }
        }
        double* const to = partial + (slab.slab * t.groups + slab.g) * partials<F> * channels;
        // Rows of threads onto the first, then rows that were put together onto their channels.
        const index begin = slab.tile * positions;
        const index own = t.wide > 1 ? channels : channels - begin;
        const index copies = slab.count == 0 ? 0 : t.wide > 1 ? slab.length / channels : 1;
#pragma unroll
        for (int k = 0; k < m; ++k) {
#pragma unroll
            for (int l = 0; l < lanes; ++l) part[int(threadIdx.x) * lanes + l] = total[l][k];
            __syncthreads();
            for (int p = int(threadIdx.x); p < positions; p += threads) {
                double x = part[p];
                for (int r = 1; r < deep; ++r) x += part[r * positions + p];
                part[p] = x;
            }
            __syncthreads();
            for (int p = int(threadIdx.x); p < positions && p < own; p += threads) {
                double x = 0.0;
                for (index j = 0; j < copies; ++j) x += part[p + j * channels];
                to[k * channels + begin + p] = x;
            }
            __syncthreads();
        }
        if constexpr (std::is_same_v<F, Moments>) {
            for (int p = int(threadIdx.x); p < positions && p < own; p += threads) {
                double* const at = to + begin + p;
                const double both[2] = {at[0], at[channels]};
                const double shift =
                    slab.count ? shift_of<T>(s, slab.first + begin + p, channels, slab.single)
                               : 0.0;
                keep<F>(both, slab.single, shift, at, channels);
            }
        }
    }
}

// The blocks of a launch; past the most that a grid has they take several items each.
inline unsigned blocks_of(index items) {
    return unsigned(std::clamp<index>(items, 1, index(1) << 30));
}

template <class F>
void sum_one(const Launch& l, const Sweep& s) {
    const auto go = [&](auto number) {
        using T = decltype(number);
        const Walk& w = l.walk;
        const unsigned blocks = blocks_of(w.items());
        if (w.rows) {
            launch(l.stream, sum_rows<F, T>, blocks, threads, 0, s, w.tiles, w.vectors, w.backward,
                   l.table, l.partial);
        } else {
            launch(l.stream, sum_planes<F, T>, blocks, threads, 0, s, w.planes, w.vectors,
                   w.backward, l.table, l.partial);
        }
    };
    s.dtype == Dtype::f64 ? go(double()) : go(float());
}

template <class F>
void map_one(const Launch& l, const Sweep& s) {
    const auto go = [&](auto number) {
        using T = decltype(number);
        const Walk& w = l.walk;
        const unsigned blocks = blocks_of(w.items());
        if (w.rows) {
            launch(l.stream, map_rows<F, T>, blocks, threads, 0, s, w.tiles, w.vectors, w.backward,
                   l.table);
        } else {
            launch(l.stream, map_planes<F, T>, blocks, threads, 0, s, w.planes, w.vectors,
                   w.backward, l.table);
        }
    };
    s.dtype == Dtype::f64 ? go(double()) : go(float());
}

// The sums and the map of a channel that fits in shared memory: it is read once.
template <class Sum, class Map, class T>
__global__ void __launch_bounds__(hold_threads)
    hold(const __grid_constant__ Sweep sums, const __grid_constant__ Sweep maps,
         const __grid_constant__ Planes p, bool vectors, const __grid_constant__ Task task,
         index bytes) {
    constexpr unsigned held = Sum::reads & ~(1u << RES);
    constexpr int m = Sum::sums, N = batch<Map, T>;
    extern __shared__ uint4 memory[];
    char* const shared = reinterpret_cast<char*>(memory);
    __shared__ double number[most_coefficients];
    const index c = blockIdx.x;
    const Piece piece = piece_of(p, c);
    for_stretches<1>(p, piece, [&](const Spot(&spot)[1]) {
        const auto [at, bit, place, n] = spot[0];
        int slot = 0;
#pragma unroll
        for (int j = 0; j < inputs; ++j) {
            if (!(held >> j & 1)) continue;
            char* const to = shared + slot++ * bytes;
            if (vectors && n == lanes && sums.in[j]) {
                const index width = bytes_of(sums.dtype);
                const char* const from = static_cast<const char*>(sums.in[j]) + at * width;
                if (is_half(sums.dtype)) {
                    __pipeline_memcpy_async(to + place * width, from, 8);
                } else {
#pragma unroll
                    for (int k = 0; k < int(sizeof(T) / 4); ++k) {
                        __pipeline_memcpy_async(to + place * width + 16 * k, from + 16 * k, 16);
                    }
                }
            } else if (n > 0) {
                put(to, sums.dtype, false, place, n,
                    fetch<T>(sums.in[j], sums.dtype, vectors, at, n));
            }
        }
    });
    __pipeline_commit();
    double shift = 0.0;
    if constexpr (std::is_same_v<Sum, Moments>) {
        shift = shift_of<T>(sums, piece.first, 1, p.shape.inner);
        if (threadIdx.x == 0) number[MEAN] = shift;
    } else {
        if (threadIdx.x == 0) channel_coefficients(task, sums.function, 0, c, number);
    }
    __pipeline_wait_prior(0);
    __syncthreads();
    Same<T, Sum::coefficients> of_sum;
    for (int k = 0; k < Sum::coefficients; ++k) of_sum.c[k] = T(number[k]);
    double total[m];
    sum_piece<Sum, T, held>(Sum{sums.setting}, sums, p, piece, vectors, of_sum, total, shared,
                            bytes);
    if (threadIdx.x == 0) {
        if constexpr (std::is_same_v<Sum, Moments>) {
            double found[3];
            keep<Sum>(total, piece.elements, shift, found, 1);
            set_channel_statistics(task, 0, c, found[1], found[2]);
        } else {
            for (int k = 0; k < m; ++k) task.sum(k, 0, c) = total[k];
            finish_channel(task, sums.function, c);
        }
        channel_coefficients(task, maps.function, 0, c, number);
    }
    __syncthreads();
    Same<T, Map::coefficients> of_map;
    for (int k = 0; k < Map::coefficients; ++k) of_map.c[k] = T(number[k]);
    for_stretches<N>(p, piece, [&](const Spot(&spot)[N]) {
        map_spots<Map, T, held>(Map{maps.setting}, maps, spot, vectors, p.width > 1, of_map, shared,
                                bytes);
    });
}

template <class Sum, class Map>
void hold_one(const Launch& l, const Sweep& sums, const Sweep& maps, const Task& task,
              index bytes) {
    constexpr unsigned held = Sum::reads & ~(1u << RES);
    int arrays = 0;
    for (int j = 0; j < inputs; ++j) arrays += held >> j & 1;
    const auto go = [&](auto number) {
        using T = decltype(number);
        const auto kernel = hold<Sum, Map, T>;
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   int(arrays * bytes)),
              "cudaFuncSetAttribute");
        launch(l.stream, kernel, unsigned(l.walk.planes.shape.channels), hold_threads,
               std::size_t(arrays * bytes), sums, maps, l.walk.planes, l.walk.vectors, task, bytes);
    };
    sums.dtype == Dtype::f64 ? go(double()) : go(float());
}

}  // namespace normalization

SP_END
