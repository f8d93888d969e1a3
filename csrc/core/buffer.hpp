// Memory of the device, and an arena that lays many arrays out in one piece of it.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "core/stream.hpp"

SP_BEGIN

class Buffer {
   public:
    Buffer() = default;
    Buffer(const Stream& stream, std::size_t bytes);
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Buffer();

    void* data() const { return data_; }
    std::size_t bytes() const { return bytes_; }
    const Stream& stream() const { return stream_; }

   private:
    void swap(Buffer& other) noexcept {
        std::swap(stream_, other.stream_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }

    Stream stream_;
    void* data_ = nullptr;
    std::size_t bytes_ = 0;
};

void copy_from_host(const Stream& stream, void* device, const void* host, std::size_t bytes);
void copy_to_host(const Stream& stream, void* host, const void* device, std::size_t bytes);
void copy_on_device(const Stream& stream, void* to, const void* from, std::size_t bytes);
void fill_zero(const Stream& stream, void* device, std::size_t bytes);

// Arrays are announced first, as pointers to be set, and placed together once their number of
// copies (the directions of a block) is known.
class Arena {
   public:
    template <class T>
    void add(T*& pointer, index count) {
        slots_.push_back({reinterpret_cast<void**>(&pointer), count * sizeof(T)});
    }

    std::size_t bytes(index copies) const {
        std::size_t total = 0;
        for (std::size_t i = 0; i < slots_.size(); ++i) total += padded(i, copies);
        return total;
    }

    void place(void* memory, index copies) const {
        auto* at = static_cast<char*>(memory);
        for (std::size_t i = 0; i < slots_.size(); ++i) {
            *slots_[i].pointer = at;
            at += padded(i, copies);
        }
    }

   private:
    struct Slot {
        void** pointer;
        std::size_t bytes;
    };

    // 64-byte lines, and an odd number of them between arrays: equal offsets within a page would
    // make the arrays of one loop compete for the same cache sets.
    std::size_t padded(std::size_t i, index copies) const {
        return (slots_[i].bytes * copies + 63) / 64 * 64 + 64 * (2 * (i % 8) + 1);
    }

    std::vector<Slot> slots_;
};

SP_END
