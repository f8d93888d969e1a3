// CUDA only: what the host has told the device of tensors and numbers, and tells it again where
// something has changed.
#pragma once

#include <new>
#include <utility>
#include <vector>

#include "optim/update_gpu.cuh"

SP_BEGIN

namespace optim_cuda {

// Queues that `bytes` of the host's, a multiple of 4, are written. They travel as arguments of
// kernels, which a launch keeps: the host's may change at once, and nothing is waited for.
void write(cudaStream_t queue, void* device, const void* host, std::size_t bytes);

// Memory that belongs to no stream: steps may run on several, and graphs hold its address.
class Memory {
   public:
    Memory() = default;
    explicit Memory(std::size_t bytes) : bytes_(bytes) {
        const Relaxed relaxed;
        const cudaError_t status = cudaMalloc(&data_, bytes);
        if (status == cudaErrorMemoryAllocation) {
            (void)cudaGetLastError();
            throw std::bad_alloc();
        }
        check(status, "cudaMalloc");
    }
    Memory(Memory&& other) noexcept { *this = std::move(other); }
    Memory& operator=(Memory&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    // Waits for the device, so for whatever was queued on the memory.
    ~Memory() {
        if (data_ == nullptr || forked()) return;
        const Relaxed relaxed;
        (void)cudaFree(data_);
    }
    char* data() const { return static_cast<char*>(data_); }
    std::size_t bytes() const { return bytes_; }

   private:
    void* data_ = nullptr;
    std::size_t bytes_ = 0;
};

// The tensors of one launch.
struct Group {
    int rule;
    bool wide, plain;
    std::vector<int> tensors;
    Pieces chunks, slabs;  // slabs for rules by norms only
};

class Tables {
   public:
    // As Stepper::step takes them.
    void tell(cudaStream_t queue, const std::vector<Tensor>& tensors, index layout,
              const std::vector<double>& hyper, const std::vector<Scalar>& rates);
    // Without clocks and status, which outlast the tables.
    const Device& device() const { return device_; }
    const Pieces& slabs() const { return slabs_; }
    const std::vector<Group>& groups() const { return groups_; }

   private:
    void lay_out(cudaStream_t queue, const std::vector<Tensor>& tensors, std::size_t rows);

    Memory memory_;
    Device device_{};
    Pieces slabs_{};
    std::vector<Group> groups_;
    // As told, and room to write down what is to be told.
    index layout_ = -1;
    std::size_t rows_ = 0;
    std::vector<void*> gradients_, new_gradients_;
    std::vector<double> hyper_;
    std::vector<Rate> rates_, new_rates_;
};

}  // namespace optim_cuda

SP_END
