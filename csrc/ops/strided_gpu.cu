#include "ops/strided.hpp"

#include "core/gpu.hpp"

SP_BEGIN

namespace {

constexpr int threads = 256;

template <class T>
__global__ void __launch_bounds__(threads)
    copy_kernel(const CopyPlan s, index size, const T* from, T* to) {
    for (index i = index(blockIdx.x) * threads + threadIdx.x; i < size;
         i += index(gridDim.x) * threads) {
        index rest = i, source = 0, target = 0;
        for (int a = s.axes - 1; a >= 0; --a) {
            const index above = rest / s.shape[a], position = rest - above * s.shape[a];
            source += position * s.from[a];
            target += position * s.to[a];
            rest = above;
        }
        to[target] = from[source];
    }
}

template <class T>
void copy(const Stream& stream, const CopyPlan& s, const void* from, void* to) {
    copy_kernel<<<grid(stream, s.size(), threads), threads, 0, native(stream).stream>>>(
        s, s.size(), static_cast<const T*>(from), static_cast<T*>(to));
    check(cudaGetLastError(), "copy_strided");
}

}  // namespace

void copy_strided(const Stream& stream, const CopyPlan& s, index width, const void* from,
                  void* to) {
    if (s.size() == 0) return;
    const DeviceGuard guard;
    switch (width) {
        case 2: return copy<std::uint16_t>(stream, s, from, to);
        case 4: return copy<std::uint32_t>(stream, s, from, to);
        default: return copy<std::uint64_t>(stream, s, from, to);
    }
}

SP_END
