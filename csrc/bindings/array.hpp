// Arrays from Python: NumPy's and anything that speaks DLPack, checked and borrowed without a copy.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings/dlpack.hpp"
#include "core/stream.hpp"

SP_BEGIN

namespace py = pybind11;

enum class Access { read, write };

// A C-contiguous array on this module's device, alive as long as this object.
struct Array {
    void* data = nullptr;
    std::string dtype;  // NumPy's name
    std::vector<index> shape;
    py::object owner;

    index size() const {
        index n = 1;
        for (index s : shape) n *= s;
        return n;
    }
    index bytes() const;
    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }
};

// The same with any strides, in elements.
struct Layout {
    Array array;
    std::vector<index> strides;
    bool writable = true;
    int device_type = dlpack::cpu, device_id = 0;
};

// Raises TypeError for a kind, dtype or device, ValueError for layout and writability, each as
// "name: expected ..., got ...".
Layout inspect(const py::handle& object, const char* name);
void check_device(const dlpack::Device& device, const char* name);
Array borrow(const py::handle& object, const char* name, Access access);
Array borrow(const py::handle& object, const char* name, Access access, const std::string& dtype);
Array borrow(const py::handle& object, const char* name, Access access, const std::string& dtype,
             const std::vector<index>& shape);

// Raises ValueError when a written array shares memory with another one.
void refuse_overlap(const std::vector<std::pair<const char*, const Array*>>& written,
                    const std::vector<std::pair<const char*, const Array*>>& read);

// The table of functions by which a type hands out its tensors without Python objects in between
// (DLPack 1.2; PyTorch from 2.10 on); null where it has none.
const dlpack::Exchange* exchange_of(const py::handle& object);
std::string name_of(const dlpack::DataType& type);

[[noreturn]] void raise_type(const char* name, const std::string& wanted, const std::string& got);
[[noreturn]] void raise_value(const char* name, const std::string& wanted, const std::string& got);
std::string text(const std::vector<index>& shape);

// DLPack's code of the device that this module works on, and its word.
int device_type();
const char* device_word();

// The stream that calls of this thread run on, and its DLPack integer: 0 on the CPU.
Stream current_stream();
// Another library's stream; on the CPU there is only one.
Stream foreign_stream(std::uintptr_t handle);
std::uintptr_t stream_handle(const Stream& stream);

// Memory of ours, for a consumer on another stream: that stream waits for ours. False when there is
// nothing to order; else `take_back` waits for the consumer, before the memory is used again.
bool lend(const Stream& ours, std::intptr_t consumer);
void take_back() noexcept;
// Memory of others: kept until our stream is done with it, which theirs does not wait for.
py::object until_done(py::object owner);
// Whether a tensor is one of ours that was lent to nobody else.
bool exported_here(const dlpack::ManagedVersioned& tensor);

template <class T>
constexpr const char* dtype_name() {
    return sizeof(T) == 4 ? "float32" : "float64";
}

SP_END
