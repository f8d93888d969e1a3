// The one header that sees the vendor's, which a build for another would replace: what
// Stream::native points to, and the checks that every call goes through.
#pragma once

#include <cuda_runtime.h>
#if defined(__CUDACC__)
#include <cuda_pipeline.h>
#endif

#include <algorithm>
#include <optional>
#include <string>

#include "core/errors.hpp"
#include "core/stream.hpp"

SP_BEGIN

// One for each host thread. It is never freed: buffers may outlive the thread that made them.
struct Native {
    cudaStream_t stream;
    cudaMemPool_t pool;  // null: the device has no memory pools
    double* partial;     // scratch for sums, `partial_size` of them
    unsigned* tickets;   // counters, `tickets_size` of them, that are zero between kernels
    index multiprocessors;
    double* answer = nullptr;  // of the host's, for a kernel to write: made by the first dot
    void* blas = nullptr;      // a cublasHandle_t, made by the first product, and what it works in
    void* blas_workspace = nullptr;
    std::optional<cudaStream_t> blas_stream = {};  // that it is set to
};
constexpr index partial_size = 1 << 18, tickets_size = 1 << 12;

constexpr int device = 0;  // the one that CUDA_VISIBLE_DEVICES puts first

inline Native& native(const Stream& stream) { return *static_cast<Native*>(stream.native); }

// What `later` is given from now on comes after what `earlier` has been given so far.
void order(cudaStream_t earlier, cudaStream_t later);

// The calling thread's stream, made when first asked for.
Stream thread_stream();
bool has_thread_stream();
Stream foreign_stream(std::uintptr_t handle);

// CUDA does not survive a fork: true in the child of a process that had begun to use it.
bool forked();
void begin_use();

// The runtime forgets the error that is thrown here, or the next launch would report it again.
inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();
    throw DeviceError(std::string(what) + ": " + cudaGetErrorString(status));
}

// Makes our device the thread's current one, and gives back the caller's.
class DeviceGuard {
   public:
    DeviceGuard() {
        check(cudaGetDevice(&previous_), "cudaGetDevice");
        if (previous_ != device) check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceGuard() {
        if (previous_ != device) (void)cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

   private:
    int previous_ = device;
};

// Allows what a capture of any stream would forbid, and what is safe outside of the captured one.
class Relaxed {
   public:
    Relaxed() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
    ~Relaxed() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
    Relaxed(const Relaxed&) = delete;
    Relaxed& operator=(const Relaxed&) = delete;

   private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Blocks of a launch whose kernel strides over `items` units of work, `each` of them a block: at
// most some waves of what the device holds, and at least one.
inline unsigned grid(const Stream& stream, index items, index each) {
    return unsigned(std::max<index>(
        1, std::min((items + each - 1) / each, 32 * native(stream).multiprocessors)));
}

SP_END
