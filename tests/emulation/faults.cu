// What a kernel may do wrong, for test_faults.py: each of these is to be seen.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <string>

namespace {

constexpr int threads = 64;

__global__ void past_the_end(float* x, int n) { x[n + int(threadIdx.x)] = 1.f; }
__global__ void beside(float* x, int n) {
    if (threadIdx.x == 0) reinterpret_cast<char*>(x)[n] = 1;
}
__global__ void off_its_address(float* x, int) { *reinterpret_cast<float4*>(x + 1) = float4{}; }
__global__ void past_a_shared_array(float* x, int n) {
    __shared__ float y[threads];
    y[threadIdx.x + n] = 0.f;
    x[threadIdx.x] = y[threadIdx.x];
}
__global__ void past_dynamic_memory(float* x, int n) {
    extern __shared__ float y[];
    y[threadIdx.x + n] = x[threadIdx.x];
}
__global__ void no_barrier(float* x, int) {
    __shared__ float y[threads];
    y[threadIdx.x] = 1.f;
    x[threadIdx.x] = y[threads - 1 - threadIdx.x];
}
__global__ void another_barrier(float* x, int) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
        x[0] = 0.f;
    }
}
__global__ void lanes_that_left(float* x, int) {
    if (threadIdx.x % 32 >= 20) return;
    x[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1.f, 1);
}
__global__ void lanes_elsewhere(float* x, int) {
    if (threadIdx.x % 2) {
        x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.f, 1);
    } else {
        __syncwarp();
    }
}
__global__ void lane_not_in_the_mask(float* x, int) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.f, 16);
}
__global__ void before_it_is_copied(float* x, int) {
    __shared__ float4 y[threads];
    __pipeline_memcpy_async(&y[threadIdx.x], &reinterpret_cast<float4*>(x)[0], 16);
    __pipeline_commit();
    x[4 + threadIdx.x] = y[threadIdx.x].x;
}
__global__ void unwritten(float* x, int n) {
    if (int(threadIdx.x) < n) x[threadIdx.x] = 0.f;
}
__global__ void last_of_two(float* x, int) {
    if (threadIdx.x == 3 || threadIdx.x == 40) x[0] = float(threadIdx.x);
}

}  // namespace

using Kernel = void (*)(float*, int);

extern "C" int launch(Kernel kernel, float* x, int n, int width, int shared) {
    kernel<<<1, width, std::size_t(shared), nullptr>>>(x, n);
    return cudaGetLastError();
}

extern "C" Kernel kernel(const char* name) {
    const std::string wanted = name;
#define SP_KERNEL(k) \
    if (wanted == #k) return k;
    SP_KERNEL(past_the_end)
    SP_KERNEL(beside)
    SP_KERNEL(off_its_address)
    SP_KERNEL(past_a_shared_array)
    SP_KERNEL(past_dynamic_memory)
    SP_KERNEL(no_barrier)
    SP_KERNEL(another_barrier)
    SP_KERNEL(lanes_that_left)
    SP_KERNEL(lanes_elsewhere)
    SP_KERNEL(lane_not_in_the_mask)
    SP_KERNEL(before_it_is_copied)
    SP_KERNEL(unwritten)
    SP_KERNEL(last_of_two)
#undef SP_KERNEL
    return nullptr;
}
