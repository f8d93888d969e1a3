// The ABI of DLPack 1 (github.com/dmlc/dlpack, include/dlpack/dlpack.h), as far as it is used.
#pragma once

#include <cstdint>

namespace dlpack {

constexpr int cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13;

struct Device {
    std::int32_t type, id;
};
struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};
constexpr bool operator==(DataType a, DataType b) {
    return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}
constexpr bool operator!=(DataType a, DataType b) { return !(a == b); }
constexpr std::uint8_t complex = 5, boolean = 6;  // codes
constexpr DataType int16{0, 16, 1}, int32{0, 32, 1}, int64{0, 64, 1}, uint8{1, 8, 1},
    float16{2, 16, 1}, float32{2, 32, 1}, float64{2, 64, 1}, bfloat16{4, 16, 1};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // null: C order
    std::uint64_t byte_offset;
};
struct Managed {
    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);
};
struct ManagedVersioned {
    std::uint32_t major, minor;
    void* context;
    void (*deleter)(ManagedVersioned*);
    std::uint64_t flags;
    Tensor tensor;
};
constexpr std::uint64_t read_only = 1;

// DLPackExchangeAPI. `tensor_of` fills in what a Python object owns and keeps: 0, or -1 with an
// exception set.
struct Exchange {
    std::uint32_t major, minor;
    Exchange* previous;
    void* allocate;
    void* managed_of;
    void* to_python;
    int (*tensor_of)(void* object, Tensor* out);
    int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

}  // namespace dlpack
