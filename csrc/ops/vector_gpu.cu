#include "ops/vector.hpp"

#include "ops/map_gpu.cuh"

SP_BEGIN

namespace {

using cuda_kernels::threads;
constexpr index most_blocks = 1024;

// The block's total, in thread 0: a tree of fixed shape.
__device__ double add_block(double sum) {
    __shared__ double shared[threads];
    shared[threadIdx.x] = sum;
    __syncthreads();
    for (int half = threads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    return shared[0];
}

template <class T>
__global__ void __launch_bounds__(threads)
    dot_kernel(const index n, const T* const x, const T* const y, double* const partial) {
    const index step = index(gridDim.x) * threads;
    double sum = 0.0;
    for (index i = index(blockIdx.x) * threads + threadIdx.x; i < n; i += step) {
        sum += double(x[i]) * double(y[i]);
    }
    sum = add_block(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(threads)
    total_kernel(const index count, const double* const partial, double* const total) {
    double sum = 0.0;
    for (index i = threadIdx.x; i < count; i += threads) sum += partial[i];
    sum = add_block(sum);
    if (threadIdx.x == 0) *total = sum;
}

template <class T>
struct Axpy {
    using scalar = T;
    static constexpr int arity = 2;
    T a;
    SP_HD void operator()(T& y, const T& x) const { y += a * x; }
};
template <class T>
struct ScaleBy {
    using scalar = T;
    static constexpr int arity = 1;
    T a;
    SP_HD void operator()(T& x) const { x *= a; }
};

}  // namespace

// The number of blocks is a function of n alone, so the sum is the same on every device.
template <class T>
double dot(const Stream& stream, index n, const T* x, const T* y) {
    if (n == 0) return 0.0;
    const DeviceGuard guard;
    Native& here = native(stream);
    if (here.answer == nullptr) {
        const Relaxed relaxed;
        void* pinned = nullptr;
        check(cudaMallocHost(&pinned, sizeof(double)), "cudaMallocHost");
        here.answer = static_cast<double*>(pinned);
    }
    const index count = std::min(most_blocks, (n + 4 * threads - 1) / (4 * threads));
    double* const sums = count == 1 ? here.answer : here.partial;
    dot_kernel<<<unsigned(count), threads, 0, here.stream>>>(n, x, y, sums);
    check(cudaGetLastError(), "dot");
    if (count > 1) total_kernel<<<1, threads, 0, here.stream>>>(count, sums, here.answer);
    check(cudaGetLastError(), "dot");
    stream.synchronize();
    return *here.answer;
}

template <class T>
void axpy(const Stream& stream, index n, T a, const T* x, T* y) {
    run(stream, double(n), [&](const Context& context) {
        map<Axpy<T>>(context, {a}, {1, 1, n}, {{per_column(y), per_column(x)}});
    });
}

template <class T>
void scale(const Stream& stream, index n, T a, T* x) {
    run(stream, double(n), [&](const Context& context) {
        map<ScaleBy<T>>(context, {a}, {1, 1, n}, {{per_column(x)}});
    });
}

#define SP_INSTANTIATE(T)                                          \
    template double dot(const Stream&, index, const T*, const T*); \
    template void axpy(const Stream&, index, T, const T*, T*);     \
    template void scale(const Stream&, index, T, T*);
SP_INSTANTIATE(float)
SP_INSTANTIATE(double)
#undef SP_INSTANTIATE

SP_END
