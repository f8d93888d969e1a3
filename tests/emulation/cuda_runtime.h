// Stands in for the vendor's header, so that the CUDA sources build with a C++ compiler alone and
// run on the host: what they use of the runtime, and of the language beside <<<>>> and __shared__,
// which build.py rewrites. Where a call waits for other threads it says from where it came.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

#define CUDART_VERSION 13000

#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __builtin_assume(x) ((void)0)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
template <class T, int n>
struct alignas(sizeof(T) * n) EmulatedVector;
template <class T>
struct alignas(2 * sizeof(T)) EmulatedVector<T, 2> {
    T x, y;
};
template <class T>
struct alignas(16) EmulatedVector<T, 4> {
    T x, y, z, w;
};
using int2 = EmulatedVector<int, 2>;
using int4 = EmulatedVector<int, 4>;
using uint2 = EmulatedVector<unsigned, 2>;
using uint4 = EmulatedVector<unsigned, 4>;
using float2 = EmulatedVector<float, 2>;
using float4 = EmulatedVector<float, 4>;
using double2 = EmulatedVector<double, 2>;

// ---- the runtime

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaMemPool_t = struct CUmemPoolHandle_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaDeviceAttr {
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrCooperativeLaunch = 95,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrMemoryPoolsSupported = 115,
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone,
    cudaStreamCaptureStatusActive,
    cudaStreamCaptureStatusInvalidated
};
enum cudaMemAllocationType { cudaMemAllocationTypeInvalid, cudaMemAllocationTypePinned };
enum cudaMemLocationType { cudaMemLocationTypeInvalid, cudaMemLocationTypeDevice };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDefault = 0, cudaEventDisableTiming = 2;

struct cudaDeviceProp {
    char name[256];
    std::size_t totalGlobalMem, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount, l2CacheSize;
};
struct cudaMemLocation {
    cudaMemLocationType type;
    int id;
};
struct cudaMemPoolProps {
    cudaMemAllocationType allocType;
    cudaMemLocation location;
};

extern "C" {
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaGetDeviceCount(int*);
cudaError_t cudaGetDevice(int*);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int);
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int);
cudaError_t cudaDeviceSynchronize();

cudaError_t cudaMemPoolCreate(cudaMemPool_t*, const cudaMemPoolProps*);
cudaError_t cudaMemPoolDestroy(cudaMemPool_t);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t);
cudaError_t cudaMallocFromPoolAsync(void**, std::size_t, cudaMemPool_t, cudaStream_t);
cudaError_t cudaMallocAsync(void**, std::size_t, cudaStream_t);
cudaError_t cudaFreeAsync(void*, cudaStream_t);
cudaError_t cudaMalloc(void**, std::size_t);
cudaError_t cudaFree(void*);
cudaError_t cudaMallocHost(void**, std::size_t);
cudaError_t cudaHostAlloc(void**, std::size_t, unsigned);
cudaError_t cudaFreeHost(void*);
cudaError_t cudaMemcpy(void*, const void*, std::size_t, cudaMemcpyKind);
cudaError_t cudaMemcpyAsync(void*, const void*, std::size_t, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemset(void*, int, std::size_t);
cudaError_t cudaMemsetAsync(void*, int, std::size_t, cudaStream_t);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamQuery(cudaStream_t);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned);
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*);
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaEventQuery(cudaEvent_t);
cudaError_t cudaEventSynchronize(cudaEvent_t);
}
// As the vendor's: the last argument may be left out.
inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e) {
    return cudaStreamWaitEvent(s, e, 0);
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph) {
    return cudaGraphInstantiate(exec, graph, 0);
}
template <class T>
cudaError_t cudaMalloc(T** p, std::size_t bytes) {
    return cudaMalloc(reinterpret_cast<void**>(p), bytes);
}

// ---- launches

namespace emulation {

struct Shape {
    dim3 grid, block;
    std::size_t shared;
    cudaStream_t stream;
    Shape(dim3 grid, dim3 block, std::size_t shared = 0, cudaStream_t stream = nullptr)
        : grid(grid), block(block), shared(shared), stream(stream) {}
};

// Runs `call` once for each thread, or keeps it if the stream is being captured. `function` is the
// kernel where the source has a pointer to it, or null.
void launch(const char* name, const void* function, const Shape&, std::function<void()> call);
void allow_shared(const void* function, std::size_t bytes);

template <class K>
struct Launcher {
    const char* name;
    const void* function;
    Shape shape;
    K kernel;
    template <class... A>
    void operator()(A... arguments) const {
        emulation::launch(name, function, shape,
                          [kernel = kernel, arguments...] { kernel(arguments...); });
    }
};
template <class K>
Launcher<K> launcher(const char* name, const void* function, const Shape& shape, K kernel) {
    return {name, function, shape, kernel};
}

void* dynamic_memory();
// Memory that the threads of a block share holds nothing when the first of them gets there.
void fresh(void* shared, std::size_t bytes);

// The bits of all lanes of the warp, once those of the mask have met here.
const std::uint64_t* meet(const char* what, unsigned mask, std::uint64_t bits, const char* file,
                          int line);
[[noreturn]] void fail(const char* what, const char* file, int line);
int lane();

template <class T>
std::uint64_t bits_of(T x) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a number of a register");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof x);
    return bits;
}
template <class T>
T from_lane(const char* what, unsigned mask, T x, int source, const char* file, int line) {
    const std::uint64_t* const all = meet(what, mask, bits_of(x), file, line);
    if (source < 0 || source >= 32 || !(mask >> source & 1)) {
        fail("a shuffle from a lane that is not in its mask", file, line);
    }
    T y;
    std::memcpy(&y, &all[source], sizeof y);
    return y;
}

}  // namespace emulation

template <class F>
cudaError_t cudaFuncSetAttribute(F* function, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        emulation::allow_shared(reinterpret_cast<const void*>(function), std::size_t(value));
    }
    return cudaSuccess;
}

// ---- the device's language

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#define SP_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

void __syncthreads(SP_HERE);
inline int __syncthreads_or(int, SP_HERE) {
    emulation::fail("__syncthreads_or is not emulated", file, line);
}
inline void __syncwarp(unsigned mask = ~0u, SP_HERE) {
    emulation::meet("__syncwarp", mask, 0, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SP_HERE) {
    const auto* const all = emulation::meet("__ballot_sync", mask, predicate != 0, file, line);
    unsigned ballot = 0;
    for (int l = 0; l < 32; ++l) {
        if ((mask >> l & 1) && all[l]) ballot |= 1u << l;
    }
    return ballot;
}
inline int __any_sync(unsigned mask, int predicate, SP_HERE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SP_HERE) {
    return __ballot_sync(mask, predicate, file, line) == mask;
}
template <class T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32, SP_HERE) {
    const int first = emulation::lane() / width * width;
    return emulation::from_lane("__shfl_sync", mask, x, first + source % width, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int with, int width = 32, SP_HERE) {
    const int lane = emulation::lane(), source = lane ^ with;
    const bool within = source < (lane / width + 1) * width;
    return emulation::from_lane("__shfl_xor_sync", mask, x, within ? source : lane, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32, SP_HERE) {
    const int lane = emulation::lane(), source = lane + int(by);
    const bool within = source < (lane / width + 1) * width;
    return emulation::from_lane("__shfl_down_sync", mask, x, within ? source : lane, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32, SP_HERE) {
    const int lane = emulation::lane(), source = lane - int(by);
    const bool within = source >= lane / width * width;
    return emulation::from_lane("__shfl_up_sync", mask, x, within ? source : lane, file, line);
}
#undef SP_HERE

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

template <class T>
T atomicExch(T* at, std::decay_t<T> x) {
    return std::exchange(*at, x);
}
template <class T>
T atomicAdd(T* at, std::decay_t<T> x) {
    return std::exchange(*at, T(*at + x));
}
template <class T>
T atomicSub(T* at, std::decay_t<T> x) {
    return std::exchange(*at, T(*at - x));
}
template <class T>
T atomicMax(T* at, std::decay_t<T> x) {
    return std::exchange(*at, *at < x ? x : *at);
}
template <class T>
T atomicMin(T* at, std::decay_t<T> x) {
    return std::exchange(*at, x < *at ? x : *at);
}
template <class T>
T atomicOr(T* at, std::decay_t<T> x) {
    return std::exchange(*at, T(*at | x));
}
template <class T>
T atomicAnd(T* at, std::decay_t<T> x) {
    return std::exchange(*at, T(*at & x));
}
template <class T>
T atomicCAS(T* at, std::decay_t<T> expected, std::decay_t<T> x) {
    return std::exchange(*at, *at == expected ? x : *at);
}
inline unsigned atomicInc(unsigned* at, unsigned last) {
    return std::exchange(*at, *at >= last ? 0u : *at + 1);
}
inline unsigned atomicDec(unsigned* at, unsigned last) {
    return std::exchange(*at, *at == 0 || *at > last ? last : *at - 1);
}

template <class T>
T __ldg(const T* x) {
    return *x;
}
template <class T>
T __ldca(const T* x) {
    return *x;
}
template <class T>
T __ldcg(const T* x) {
    return *x;
}
template <class T>
T __ldcs(const T* x) {
    return *x;
}
template <class T>
T __ldlu(const T* x) {
    return *x;
}
template <class T>
T __ldcv(const T* x) {
    return *x;
}
template <class T>
void __stwb(T* to, std::decay_t<T> x) {
    *to = x;
}
template <class T>
void __stcg(T* to, std::decay_t<T> x) {
    *to = x;
}
template <class T>
void __stcs(T* to, std::decay_t<T> x) {
    *to = x;
}
template <class T>
void __stwt(T* to, std::decay_t<T> x) {
    *to = x;
}

template <class To, class From>
To emulated_cast(From x) {
    To y;
    static_assert(sizeof x == sizeof y, "a number of the same size");
    std::memcpy(&y, &x, sizeof y);
    return y;
}
inline int __float_as_int(float x) { return emulated_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return emulated_cast<unsigned>(x); }
inline float __int_as_float(int x) { return emulated_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return emulated_cast<float>(x); }
inline long long __double_as_longlong(double x) { return emulated_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated_cast<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) {
    return unsigned(std::uint64_t(a) * std::uint64_t(b) >> 32);
}
