// The CUDA path of `map` and `reduce_columns`, included by the sources that list functions.
#pragma once

#include <type_traits>
#include <utility>

#include "core/gpu.hpp"
#include "ops/map.hpp"
#include "ops/reduce.hpp"

SP_BEGIN

namespace cuda_kernels {

constexpr int threads = 256;

// Whether F takes operand I by reference to const, and so leaves it as it is.
template <class F, std::size_t I, std::size_t... J>
constexpr bool reads_only(std::index_sequence<J...>) {
    using T = typename F::scalar;
    return std::is_invocable_v<const F&, std::conditional_t<I == J, const T&, T&>...>;
}

// Elements that are loaded and stored by one instruction.
template <class T, int width>
struct alignas(width * sizeof(T)) Pack {
    T of[width];
};

template <class F, std::size_t I, class P>
__device__ __forceinline__ void store(typename F::scalar* to, const P& x) {
    if constexpr (!reads_only<F, I>(std::make_index_sequence<F::arity>())) {
        *reinterpret_cast<P*>(to) = x;
    }
}

// Everything is loaded before anything is stored, so operands may be the same memory.
template <class P, class F, std::size_t... I>
__device__ __forceinline__ void map_pack(const F& f, typename F::scalar* const (&at)[F::arity],
                                         index offset, std::index_sequence<I...>) {
    P x[] = {*reinterpret_cast<const P*>(at[I] + offset)...};
#pragma unroll
    for (int i = 0; i < int(sizeof(P) / sizeof(typename F::scalar)); ++i) f(x[I].of[i]...);
    (store<F, I>(at[I] + offset, x[I]), ...);
}

template <class F>
__device__ __forceinline__ void point(const Operands<F>& operands, index d, index row, index column,
                                      typename F::scalar* (&at)[F::arity]) {
#pragma unroll
    for (int a = 0; a < F::arity; ++a) {
        const auto& o = operands.at[a];
        at[a] = o.data + d * o.direction + row * o.row + column;
    }
}

// Columns go by packs of `width`, what is left of a line one by one. `packs` is the extent in
// packs, `step` the number of threads as (directions, rows, packs): adding it with carries walks
// the elements without a division for each.
template <int width, class F>
__global__ void __launch_bounds__(threads)
    map_kernel(const F f, const Extent packs, const index columns, const Operands<F> operands,
               const Extent step) {
    using T = typename F::scalar;
    constexpr auto all = std::make_index_sequence<F::arity>();
    const index first = index(blockIdx.x) * threads + threadIdx.x;
    index pack = first % packs.columns, line = first / packs.columns;
    index row = line % packs.rows, d = line / packs.rows;
    while (d < packs.directions) {
        const index column = pack * width;
        T* at[F::arity];
        point<F>(operands, d, row, column, at);
        if (width == 1 || column + width <= columns) {
            map_pack<Pack<T, width>>(f, at, 0, all);
        } else {
#pragma unroll 1
            for (index i = 0; i < columns - column; ++i) map_pack<Pack<T, 1>>(f, at, i, all);
        }
        pack += step.columns;
        row += step.rows;
        d += step.directions;
        if (pack >= packs.columns) {
            pack -= packs.columns;
            ++row;
        }
        if (row >= packs.rows) {
            row -= packs.rows;
            ++d;
        }
    }
}

template <int width, class F>
void launch_map(const Stream& stream, const F& f, const Extent& extent,
                const Operands<F>& operands) {
    const Extent packs{extent.directions, extent.rows, (extent.columns + width - 1) / width};
    const unsigned blocks = grid(stream, packs.size(), threads);
    const index all = index(blocks) * threads;
    const Extent step{all / packs.columns / packs.rows, all / packs.columns % packs.rows,
                      all % packs.columns};
    const auto kernel = map_kernel<width, F>;
    kernel<<<blocks, threads, 0, native(stream).stream>>>(f, packs, extent.columns, operands, step);
    check(cudaGetLastError(), "map");
}

// Sums are taken by blocks of threads over a tile of columns and a block of rows.
constexpr int tile = 32, lanes = 8;

// The total over the lanes, in lane 0, in a fixed order.
template <int sums>
__device__ __forceinline__ void add_lanes(double (&sum)[sums],
                                          double (&shared)[sums][lanes][tile]) {
#pragma unroll
    for (int s = 0; s < sums; ++s) shared[s][threadIdx.y][threadIdx.x] = sum[s];
    __syncthreads();
    if (threadIdx.y == 0) {
#pragma unroll
        for (int s = 0; s < sums; ++s) {
            double total = 0.0;
            for (int lane = 0; lane < lanes; ++lane) total += shared[s][lane][threadIdx.x];
            sum[s] = total;
        }
    }
    __syncthreads();  // `shared` is free again
}

template <class F, std::size_t... I>
__device__ __forceinline__ void add_element(const F& f, double (&sum)[F::sums],
                                            typename F::scalar* const (&at)[F::arity],
                                            std::index_sequence<I...>) {
    f(sum, *at[I]...);
}

// Partial sums laid out (block, direction, sum, column); a single block's are the totals.
template <class F>
__global__ void __launch_bounds__(tile* lanes)
    sum_kernel(const F f, const Extent extent, const Operands<F> operands, const index each,
               const index blocks, double* const partial) {
    __shared__ double shared[F::sums][lanes][tile];
    const index tiles = (extent.columns + tile - 1) / tile;
    const index items = tiles * blocks * extent.directions;
    for (index item = blockIdx.x; item < items; item += gridDim.x) {
        const index column = item % tiles * tile + threadIdx.x;
        const index block = item / tiles % blocks, d = item / tiles / blocks;
        const index next = (block + 1) * each, end = next < extent.rows ? next : extent.rows;
        double sum[F::sums] = {};
        if (column < extent.columns) {
            for (index row = block * each + threadIdx.y; row < end; row += lanes) {
                typename F::scalar* at[F::arity];
                point<F>(operands, d, row, column, at);
                add_element(f, sum, at, std::make_index_sequence<F::arity>());
            }
        }
        add_lanes(sum, shared);
        if (column >= extent.columns || threadIdx.y != 0) continue;
        if (blocks == 1) {
            f.finish(sum, d, column);
        } else {
            double* to = partial + (block * extent.directions + d) * F::sums * extent.columns;
            for (int s = 0; s < F::sums; ++s) to[s * extent.columns + column] = sum[s];
        }
    }
}

template <class F>
__global__ void __launch_bounds__(tile* lanes)
    finish_kernel(const F f, const Extent extent, const index blocks, const double* const partial) {
    __shared__ double shared[F::sums][lanes][tile];
    const index tiles = (extent.columns + tile - 1) / tile;
    for (index item = blockIdx.x; item < tiles * extent.directions; item += gridDim.x) {
        const index column = item % tiles * tile + threadIdx.x, d = item / tiles;
        double sum[F::sums] = {};
        if (column < extent.columns) {
            for (index block = threadIdx.y; block < blocks; block += lanes) {
                const double* from =
                    partial + (block * extent.directions + d) * F::sums * extent.columns;
                for (int s = 0; s < F::sums; ++s) sum[s] += from[s * extent.columns + column];
            }
        }
        add_lanes(sum, shared);
        if (column < extent.columns && threadIdx.y == 0) f.finish(sum, d, column);
    }
}

}  // namespace cuda_kernels

// Rows in a block of a sum: at most 256 blocks, whatever the device.
inline index rows_per_block(index rows) { return std::max<index>(256, (rows + 255) / 256); }

template <class F>
void map(const Context& context, const F& f, const Extent& extent, const Operands<F>& operands) {
    if (extent.size() == 0) return;
    // Rows, and then directions, that follow each other in every operand are one long line.
    bool rows = true, directions = true;
    for (const auto& o : operands.at) {
        rows = rows && o.row == extent.columns;
        directions = directions && o.direction == extent.rows * extent.columns;
    }
    Extent lines = extent;
    if (rows) lines = {extent.directions, 1, extent.rows * extent.columns};
    if (rows && directions) lines = {1, 1, extent.size()};
    // Few elements take a thread each, so that they spread over the device.
    constexpr index width = 16 / sizeof(typename F::scalar);
    bool wide =
        extent.size() >= width * cuda_kernels::threads * native(context.stream).multiprocessors;
    for (const auto& o : operands.at) {
        wide = wide && reinterpret_cast<std::uintptr_t>(o.data) % 16 == 0 &&
               (lines.rows == 1 || o.row % width == 0) &&
               (lines.directions == 1 || o.direction % width == 0);
    }
    if (wide) {
        cuda_kernels::launch_map<width>(context.stream, f, lines, operands);
    } else {
        cuda_kernels::launch_map<1>(context.stream, f, lines, operands);
    }
}

template <class F>
void reduce_columns(const Context& context, const F& f, const Extent& extent,
                    const Operands<F>& operands, double* partial) {
    using namespace cuda_kernels;
    if (extent.directions == 0 || extent.columns == 0) return;
    const index tiles = (extent.columns + tile - 1) / tile;
    const index blocks = reduce_blocks(extent.rows);
    const dim3 shape(tile, lanes);
    const cudaStream_t stream = native(context.stream).stream;
    if (blocks > 0) {
        const unsigned n = grid(context.stream, tiles * blocks * extent.directions, 1);
        sum_kernel<<<n, shape, 0, stream>>>(f, extent, operands, rows_per_block(extent.rows),
                                            blocks, partial);
        check(cudaGetLastError(), "reduce_columns");
    }
    if (blocks == 1) return;
    const unsigned n = grid(context.stream, tiles * extent.directions, 1);
    finish_kernel<<<n, shape, 0, stream>>>(f, extent, blocks, partial);
    check(cudaGetLastError(), "reduce_columns");
}

SP_END

#define SP_INSTANTIATE_MAP(F) \
    template void map<F>(const Context&, const F&, const Extent&, const Operands<F>&);
#define SP_INSTANTIATE_REDUCE(F)                                                                 \
    template void reduce_columns<F>(const Context&, const F&, const Extent&, const Operands<F>&, \
                                    double*);
