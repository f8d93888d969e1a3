// The bits of products are cuBLAS's, not the CPU's.

#include <utility>

#include "core/buffer.hpp"
#include "ops/gemm.hpp"
#include "optim/update_gpu.cuh"

SP_BEGIN

namespace {

using namespace optim_cuda;

template <class T>
__global__ void __launch_bounds__(threads)
    squares_kernel(const index size, const T* const x, double* const sums) {
    const index slabs = slabs_of(size);
    for (index s = blockIdx.x; s < slabs; s += gridDim.x) {
        const index begin = s * slab, end = begin + slab < size ? begin + slab : size;
        double sum = 0.0;
#pragma unroll 16
        for (index i = begin + index(threadIdx.x); i < end; i += threads) {
            sum = add_square(sum, double(x[i]));
        }
        sum = folded(sum, threads);
        if (threadIdx.x == 0) sums[s] = sum;
    }
}

template <class T>
__global__ void __launch_bounds__(threads)
    inverse_kernel(const index slabs, const double* const sums, const double eps, T* const factor) {
    const double norm = std::sqrt(sum_of(sums, slabs));
    if (threadIdx.x == 0) *factor = T(1.0 / std::max(norm, eps));
}

// By `factor` where it is there, else by the constant.
template <class T>
__global__ void __launch_bounds__(threads)
    scale_kernel(const index size, const T* const factor, const T constant, const T* from, T* to) {
    const T by = factor ? *factor : constant;
    const index step = index(gridDim.x) * threads;
    for (index i = index(blockIdx.x) * threads + threadIdx.x; i < size; i += step) {
        to[i] = from[i] * by;
    }
}

// P = a + b G + c G^2, from G and G^2.
template <class T>
__global__ void __launch_bounds__(threads)
    polynomial_kernel(const index side, const T a, const T b, const T c, const T* const g,
                      const T* const g2, T* const p) {
    const index step = index(gridDim.x) * threads;
    for (index at = index(blockIdx.x) * threads + threadIdx.x; at < side * side; at += step) {
        const index row = quotient(at, side);
        const T diagonal = at - row * side == row ? a : T(0);
        p[at] = b * g[at] + c * g2[at] + diagonal;
    }
}

template <class T>
void muon_typed(const MatrixPart& part) {
    const Tensor& t = part.tensor;
    const Stream& stream = part.stream;
    const Context context{0, 1, stream};
    const cudaStream_t queue = native(stream).stream;
    const double* const h = part.hyper;
    const index rows = t.rows, columns = t.columns, size = t.size, slabs = slabs_of(size);
    const bool wide = rows <= columns;
    const index side = wide ? rows : columns;
    const Buffer memory(stream, std::size_t(2 * size + 3 * side * side) * sizeof(T));
    const Buffer scalars(stream, std::size_t(slabs + 1) * sizeof(double));
    auto* const x = static_cast<T*>(memory.data());
    T* const g = x + 2 * size;
    T* const g2 = g + side * side;
    T* const polynomial = g2 + side * side;
    auto* const sums = static_cast<double*>(scalars.data());
    auto* const factor = reinterpret_cast<T*>(sums + slabs);
    gather(part, RuleId::MuonMomentum, x);

    const unsigned blocks = grid(stream, size, threads);
    squares_kernel<<<grid(stream, slabs, 1), threads, 0, queue>>>(size, x, sums);
    check(cudaGetLastError(), "muon");
    inverse_kernel<<<1, threads, 0, queue>>>(slabs, sums, h[MuonEps], factor);
    check(cudaGetLastError(), "muon");
    scale_kernel<T><<<blocks, threads, 0, queue>>>(size, factor, T(1), x, x);
    check(cudaGetLastError(), "muon");

    T* in = x;
    T* out = x + size;
    const auto steps = static_cast<int>(h[MuonSteps]);
    const auto a = T(h[MuonA]), b = T(h[MuonB]), c = T(h[MuonC]);
    for (int step = 0; step < steps; ++step) {
        if (wide) {
            gemm<T>(context, Transpose::no, Transpose::yes, side, side, columns, in, columns, in,
                    columns, T(0), g, side);
        } else {
            gemm<T>(context, Transpose::yes, Transpose::no, side, side, rows, in, columns, in,
                    columns, T(0), g, side);
        }
        gemm<T>(context, Transpose::no, Transpose::no, side, side, side, g, side, g, side, T(0), g2,
                side);
        polynomial_kernel<<<grid(stream, side * side, threads), threads, 0, queue>>>(
            side, a, b, c, g, g2, polynomial);
        check(cudaGetLastError(), "muon");
        if (wide) {
            gemm<T>(context, Transpose::no, Transpose::no, rows, columns, side, polynomial, side,
                    in, columns, T(0), out, columns);
        } else {
            gemm<T>(context, Transpose::no, Transpose::no, rows, columns, side, in, columns,
                    polynomial, side, T(0), out, columns);
        }
        std::swap(in, out);
    }
    const auto longer = double(std::max(rows, columns));
    const double adjusted = h[MuonMatchRms] != 0.0
                                ? 0.2 * std::sqrt(longer)
                                : std::sqrt(std::max(1.0, double(rows) / double(columns)));
    scale_kernel<T><<<blocks, threads, 0, queue>>>(size, nullptr, T(adjusted), in, x);
    check(cudaGetLastError(), "muon");
    apply<T>(part, x);
}

}  // namespace

void optim_cuda::muon(const MatrixPart& part) {
    if (part.tensor.p.dtype == Dtype::f64) {
        muon_typed<double>(part);
    } else {
        muon_typed<float>(part);
    }
}

SP_END
