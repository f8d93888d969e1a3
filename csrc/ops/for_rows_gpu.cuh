// The CUDA path of `for_rows`, included by the sources that list functions: a thread for each row.
#pragma once

#include "core/gpu.hpp"
#include "ops/for_rows.hpp"

SP_BEGIN

namespace cuda_kernels {

constexpr int row_threads = 64;  // few, so that a small batch spreads over the device

template <class F>
__global__ void __launch_bounds__(row_threads)
    row_kernel(const F f, const index directions, const index rows) {
    const index step = index(gridDim.x) * row_threads;
    index i = index(blockIdx.x) * row_threads + threadIdx.x;
    for (; i < directions * rows; i += step) f(i / rows, i % rows);
}

}  // namespace cuda_kernels

template <class F>
void for_rows(const Context& context, const F& f, index directions, index rows) {
    using namespace cuda_kernels;
    if (directions * rows == 0) return;
    const unsigned blocks = grid(context.stream, directions * rows, row_threads);
    row_kernel<<<blocks, row_threads, 0, native(context.stream).stream>>>(f, directions, rows);
    check(cudaGetLastError(), "for_rows");
}

SP_END

#define SP_INSTANTIATE_ROWS(F) template void for_rows<F>(const Context&, const F&, index, index);
