#include "optim/update.hpp"

#include <utility>

#include "core/cuda.cuh"
#include "optim/rules.hpp"

SP_BEGIN

namespace {

constexpr int threads = 256, unrolled = 4, chunk = threads * unrolled;
constexpr int most_tensors = 64;  // as many as a kernel's arguments have room for

// Chunks are numbered through all tensors of a launch; `first` is each tensor's first.
template <class R>
struct Launch {
    R rule;
    int count;
    index chunks;
    index first[most_tensors];
    Tensor<typename R::scalar> tensors[most_tensors];
};

template <class R, std::size_t... I>
__device__ __forceinline__ void update_chunk(const R& rule,
                                             const Tensor<typename R::scalar>& tensor, index begin,
                                             std::index_sequence<I...>) {
    using T = typename R::scalar;
    T p[unrolled], g[unrolled];
    [[maybe_unused]] T state[R::states + 1][unrolled];
    // All loads come first, to have them under way together.
#pragma unroll
    for (int k = 0; k < unrolled; ++k) {
        const index i = begin + k * threads;
        if (i >= tensor.size) continue;
        p[k] = tensor.p[i];
        g[k] = tensor.gradient[i];
        ((state[I][k] = tensor.state[I][i]), ...);
    }
#pragma unroll
    for (int k = 0; k < unrolled; ++k) {
        const index i = begin + k * threads;
        if (i >= tensor.size) continue;
        rule(p[k], g[k], state[I][k]...);
        tensor.p[i] = p[k];
        ((tensor.state[I][i] = state[I][k]), ...);
    }
}

template <class R>
__global__ void __launch_bounds__(threads) update_kernel(const __grid_constant__ Launch<R> launch) {
    for (index c = blockIdx.x; c < launch.chunks; c += gridDim.x) {
        int t = 0, above = launch.count;  // first[t] <= c < first[above]
        while (above - t > 1) {
            const int middle = (t + above) / 2;
            if (launch.first[middle] <= c) {
                t = middle;
            } else {
                above = middle;
            }
        }
        update_chunk(launch.rule, launch.tensors[t],
                     (c - launch.first[t]) * chunk + index(threadIdx.x),
                     std::make_index_sequence<R::states>());
    }
}

}  // namespace

template <class R>
void update(const Stream& stream, const R& rule,
            const std::vector<Tensor<typename R::scalar>>& tensors) {
    static_assert(sizeof(Launch<R>) <= 4096, "a kernel's arguments are at most 4 KB");
    const DeviceGuard guard;
    Launch<R> launch{rule, 0, 0, {}, {}};
    const auto flush = [&] {
        if (launch.count == 0) return;
        update_kernel<<<grid(stream, launch.chunks, 1), threads, 0, native(stream).stream>>>(
            launch);
        check(cudaGetLastError(), "update");
        launch.count = 0;
        launch.chunks = 0;
    };
    for (const auto& tensor : tensors) {
        if (tensor.size == 0) continue;
        launch.first[launch.count] = launch.chunks;
        launch.tensors[launch.count] = tensor;
        launch.chunks += (tensor.size + chunk - 1) / chunk;
        if (++launch.count == most_tensors) flush();
    }
    flush();
}

#define SP_INSTANTIATE(R)                                                                    \
    template void update(const Stream&, const R<float>&, const std::vector<Tensor<float>>&); \
    template void update(const Stream&, const R<double>&, const std::vector<Tensor<double>>&);
SP_RULES(SP_INSTANTIATE)
#undef SP_INSTANTIATE

SP_END
