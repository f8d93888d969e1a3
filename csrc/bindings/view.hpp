// An array from Python (NumPy's, or anything that speaks DLPack), looked at and never copied.
#pragma once

#include <algorithm>
#include <utility>

#include "bindings/device.hpp"
#include "core/dtype.hpp"

SP_BEGIN

enum class Access { read, write };

std::string name_of(const dlpack::DataType& type);  // as NumPy has it

// What an object's memory looks like at the moment; it is on this module's device.
struct View {
    void* data = nullptr;
    dlpack::DataType dtype{};
    std::vector<index> shape, strides;  // in elements
    bool writable = true;
    // How it was read: by the table of the object's type, which gives no hold of the memory; or
    // through NumPy or a capsule, by an owner that keeps it.
    const dlpack::Exchange* exchange = nullptr;
    py::object owner;

    index size() const;
    index width() const { return dtype.bits / 8; }  // bytes of an element
    index bytes() const { return size() * width(); }
    // The bytes between its first and its last element.
    std::pair<const char*, const char*> range() const;
    bool contiguous() const;
    // Whether two of its elements may share memory: not for strides that nest.
    bool overlaps_itself() const;
    std::string dtype_name() const { return name_of(dtype); }
    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }

    // Reads it again from its object, in the same way; whether anything but the address changed.
    bool refresh(const py::handle& object, const char* name);
    // The address now of an object that has an exchange; null where anything else changed.
    void* address_if_unchanged(PyObject* object) const;
};

// Each raises TypeError for a kind, dtype or device, ValueError for a layout, a shape or a missing
// permission. `hold` keeps the memory, on our stream; `peek` reads by the type's exchange if it has
// one, which tells its stream if that is asked for.
View hold(const py::handle& object, const char* name);
View peek(const py::handle& object, const char* name, bool with_stream = false);
// C-contiguous, and held.
View borrow(const py::handle& object, const char* name, Access access);
View borrow(const py::handle& object, const char* name, Access access, dlpack::DataType dtype);
View borrow(const py::handle& object, const char* name, Access access, dlpack::DataType dtype,
            const std::vector<index>& shape);

void check_writable(const View& view, const char* name);
void check_contiguous(const View& view, const char* name);
void check_dtype(const View& view, const char* name, dlpack::DataType wanted);
void check_shape(const View& view, const char* name, const std::vector<index>& wanted);
// One of those that arithmetic reads and writes.
Dtype real_dtype(const View& view, const char* name);

template <class T>
constexpr dlpack::DataType type_of() {
    return sizeof(T) == 4 ? dlpack::float32 : dlpack::float64;
}

// Whether a tensor is one of our buffers that was lent to nobody else.
bool exported_here(const dlpack::ManagedVersioned& tensor);

// The address of a tensor that hands itself out; null where it does not look as given. It runs
// twice for every tensor of a step.
inline void* address_if_alike(const dlpack::Exchange& exchange, PyObject* object,
                              dlpack::DataType dtype, int axes, const index* shape,
                              const index* strides) {
    dlpack::Tensor t{};
    if (exchange.tensor_of(object, &t) != 0) {
        PyErr_Clear();  // said by who looks more closely
        return nullptr;
    }
    bool same =
        t.ndim == axes && t.dtype == dtype && t.device.type == device_type() && t.device.id == 0;
    // A loop, since a call of memcmp costs more than the few comparisons.
    for (int a = 0; same && a < axes; ++a) {
        same = t.shape[a] == shape[a] && t.strides[a] == strides[a];
    }
    return same ? static_cast<char*>(t.data) + t.byte_offset : nullptr;
}

// All of a view that has to be compared at every step, close together, since thousands of tensors
// do not stay in the cache.
class Fingerprint {
   public:
    Fingerprint() = default;
    explicit Fingerprint(const View& view) {
        if (!view.exchange || view.shape.size() > most_axes) return;
        exchange_ = view.exchange;
        address = view.data;
        axes_ = int(view.shape.size());
        dtype_ = view.dtype;
        std::copy(view.shape.begin(), view.shape.end(), shape_);
        std::copy(view.strides.begin(), view.strides.end(), strides_);
    }
    // False for what has many axes or does not hand itself out: that is looked at more closely.
    explicit operator bool() const { return exchange_; }
    void* address_if_unchanged(PyObject* object) const {
        return address_if_alike(*exchange_, object, dtype_, axes_, shape_, strides_);
    }

    void* address = nullptr;

   private:
    static constexpr int most_axes = 4;
    const dlpack::Exchange* exchange_ = nullptr;
    int axes_ = 0;
    dlpack::DataType dtype_{};
    index shape_[most_axes], strides_[most_axes];
};

SP_END
