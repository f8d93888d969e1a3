#include "core/buffer.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

SP_BEGIN

namespace {
constexpr std::size_t huge_page = std::size_t(2) << 20;
}

// Large buffers ask for huge pages: a fresh 4 KiB page costs a fault, and half the bandwidth.
Buffer::Buffer(const Stream& stream, std::size_t bytes) : stream_(stream), bytes_(bytes) {
    if (bytes == 0) return;
    const std::size_t alignment = bytes >= 2 * huge_page ? huge_page : 64;
    data_ = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    // Advice: a kernel that cannot follow it gives ordinary pages.
    if (alignment == huge_page) (void)madvise(data_, bytes, MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() { std::free(data_); }

void copy_from_host(const Stream&, void* device, const void* host, std::size_t bytes) {
    if (bytes) std::memcpy(device, host, bytes);
}
void copy_to_host(const Stream&, void* host, const void* device, std::size_t bytes) {
    if (bytes) std::memcpy(host, device, bytes);
}
void copy_on_device(const Stream&, void* to, const void* from, std::size_t bytes) {
    if (bytes) std::memcpy(to, from, bytes);
}
void fill_zero(const Stream&, void* device, std::size_t bytes) {
    if (bytes) std::memset(device, 0, bytes);
}

SP_END
