#include "core/buffer.hpp"

#include <new>

#include "core/gpu.hpp"

SP_BEGIN

Buffer::Buffer(const Stream& stream, std::size_t bytes) : stream_(stream), bytes_(bytes) {
    if (bytes == 0) return;
    const DeviceGuard guard;
    const Native& n = native(stream);
    const cudaError_t status = n.pool ? cudaMallocFromPoolAsync(&data_, bytes, n.pool, n.stream)
                                      : cudaMalloc(&data_, bytes);
    if (status == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        throw std::bad_alloc();
    }
    check(status, "cudaMalloc");
}

// Errors have nowhere to go: a broken device reports them at the next call, and at exit the runtime
// may be gone already.
Buffer::~Buffer() {
    if (data_ == nullptr || forked()) return;
    try {
        const DeviceGuard guard;
        const Native& n = native(stream_);
        check(n.pool ? cudaFreeAsync(data_, n.stream) : cudaFree(data_), "cudaFree");
    } catch (const DeviceError&) {
    }
}

namespace {

void copy(const Stream& stream, void* to, const void* from, std::size_t bytes,
          cudaMemcpyKind kind) {
    if (bytes == 0) return;
    const DeviceGuard guard;
    check(cudaMemcpyAsync(to, from, bytes, kind, native(stream).stream), "cudaMemcpyAsync");
}

}  // namespace

// The caller may change its array on return, and read the other one.
void copy_from_host(const Stream& stream, void* device, const void* host, std::size_t bytes) {
    copy(stream, device, host, bytes, cudaMemcpyHostToDevice);
    stream.synchronize();
}
void copy_to_host(const Stream& stream, void* host, const void* device, std::size_t bytes) {
    copy(stream, host, device, bytes, cudaMemcpyDeviceToHost);
    stream.synchronize();
}
void copy_on_device(const Stream& stream, void* to, const void* from, std::size_t bytes) {
    copy(stream, to, from, bytes, cudaMemcpyDeviceToDevice);
}
void fill_zero(const Stream& stream, void* device, std::size_t bytes) {
    if (bytes == 0) return;
    const DeviceGuard guard;
    check(cudaMemsetAsync(device, 0, bytes, native(stream).stream), "cudaMemsetAsync");
}

SP_END
