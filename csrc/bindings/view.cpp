#include "bindings/view.hpp"

#include <pybind11/numpy.h>

#include <cstdlib>
#include <functional>
#include <numeric>

SP_BEGIN

namespace {

std::string type_of(const py::handle& object) { return Py_TYPE(object.ptr())->tp_name; }

// DLPack's code for a NumPy dtype.
dlpack::DataType code_of(const py::dtype& type, const char* name) {
    const auto bits = 8 * type.itemsize();
    const auto make = [&](std::uint8_t code) {
        return dlpack::DataType{code, std::uint8_t(bits), 1};
    };
    if (bits < 256) {
        switch (type.kind()) {
            case 'i': return make(0);
            case 'u': return make(1);
            case 'f': return make(2);
            case 'c': return make(dlpack::complex);
            case 'b': return make(dlpack::boolean);
        }
    }
    const std::string word = py::str(type);
    if (word != "bfloat16") raise_type(name, "an array of numbers", "dtype " + word);
    return dlpack::bfloat16;  // of ml_dtypes
}

// Only subclasses pay for the question.
void refuse_mask(const py::handle& object, const char* name) {
    const auto plain = py::detail::npy_api::get().PyArray_Type_;
    if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) != reinterpret_cast<PyObject*>(plain) &&
        py::hasattr(object, "filled")) {
        raise_type(name, "an array without a mask (x.filled(…))", "a masked array");
    }
}

View from_numpy(const py::handle& object, const char* name) {
    const auto a = py::reinterpret_borrow<py::array>(object);
    const py::dtype type = a.dtype();
    if (type.byteorder() != '=' && type.byteorder() != '|') {
        raise_type(name, "native byte order", "swapped bytes");
    }
    View v;
    v.data = const_cast<void*>(a.data());
    v.dtype = code_of(type, name);
    v.shape.assign(a.shape(), a.shape() + a.ndim());
    for (py::ssize_t i = 0; i < a.ndim(); ++i) {
        if (a.itemsize() && a.strides(i) % a.itemsize() != 0) {
            raise_value(name, "strides of whole elements", std::to_string(a.strides(i)) + " bytes");
        }
        v.strides.push_back(a.itemsize() ? a.strides(i) / a.itemsize() : 0);
    }
    v.writable = a.writeable();
    v.owner = a;
    check_device({dlpack::cpu, 0}, name);
    return v;
}

void* address_of(const dlpack::Tensor& t, const char* name) {
    if (!t.data && !std::count(t.shape, t.shape + t.ndim, 0)) {
        raise_value(name, "a tensor with memory", "one without");
    }
    return static_cast<char*>(t.data) + t.byte_offset;
}

View from_tensor(const dlpack::Tensor& t, const char* name) {
    check_device(t.device, name);
    View v;
    v.data = address_of(t, name);
    v.dtype = t.dtype;
    v.shape.assign(t.shape, t.shape + t.ndim);
    if (t.strides) {
        v.strides.assign(t.strides, t.strides + t.ndim);
    } else {
        index stride = 1;
        v.strides.resize(t.ndim);
        for (int i = t.ndim - 1; i >= 0; --i) {
            v.strides[i] = stride;
            stride *= t.shape[i];
        }
    }
    return v;
}

// The capsule stays as it is: its destructor gives the tensor back when `owner` goes.
View from_capsule(const py::handle& exporter, const char* name) {
    // A tensor that autograd watches exports only its data.
    const py::object object = py::hasattr(exporter, "detach")
                                  ? exporter.attr("detach")()
                                  : py::reinterpret_borrow<py::object>(exporter);
    py::dict wanted;
    const auto device = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    if (device.first != dlpack::cpu && device.first != dlpack::cuda_host) {
        wanted["stream"] = std::max<std::uintptr_t>(stream_handle(current_stream()), 1);
    }
    py::object capsule;
    try {
        capsule =
            object.attr("__dlpack__")(**wanted, py::arg("max_version") = py::make_tuple(1, 0));
    } catch (py::error_already_set& error) {
        // Exporters older than DLPack 1.0 do not know the argument.
        if (!error.matches(PyExc_TypeError)) throw;
        capsule = object.attr("__dlpack__")(**wanted);
    }
    View v;
    bool ours = false;
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
        const auto* managed = static_cast<dlpack::ManagedVersioned*>(
            PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
        v = from_tensor(managed->tensor, name);
        v.writable = !(managed->flags & dlpack::read_only);
        ours = exported_here(*managed);
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
        v = from_tensor(
            static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor,
            name);
    } else {
        raise_type(name, "a DLPack capsule", type_of(capsule));
    }
    // JAX arrays never change, whatever their capsule says.
    if (type_of(object).find("ArrayImpl") != std::string::npos) v.writable = false;
    v.owner = py::make_tuple(object, capsule);
    if (!ours) v.owner = keep_until_done(std::move(v.owner));
    return v;
}

// The table of functions by which a type hands out its tensors without Python objects in between
// (DLPack 1.2; PyTorch from 2.10 on); null where it has none.
const dlpack::Exchange* exchange_of(const py::handle& object) {
    static PyObject* const word = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
    const py::handle type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
    const py::object capsule = py::getattr(type, py::handle(word), py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
    const auto* const api = static_cast<const dlpack::Exchange*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    return api->major == 1 && api->tensor_of ? api : nullptr;
}

// Whether a method says so; others than PyTorch's have none.
bool says(const py::handle& object, PyObject* method) {
    PyObject* const answer = PyObject_CallMethodObjArgs(object.ptr(), method, nullptr);
    Py_XDECREF(answer);
    PyErr_Clear();
    return answer == Py_True;
}

View by_exchange(const dlpack::Exchange& exchange, const py::handle& object, const char* name) {
    // PyTorch has negatives and zeros that are not in memory, which the exchange says nothing of.
    static PyObject* const negative = PyUnicode_InternFromString("is_neg");
    static PyObject* const zero = PyUnicode_InternFromString("_is_zerotensor");
    const bool negated = says(object, negative);  // lets others run: before the memory is looked at
    dlpack::Tensor t{};
    if (exchange.tensor_of(object.ptr(), &t) != 0) throw py::error_already_set();
    if (negated || (!t.data && says(object, zero))) {
        raise_value(name, "its numbers in memory", "a lazy negative or zero (clone it)");
    }
    View v = from_tensor(t, name);
    v.exchange = &exchange;
    return v;
}

}  // namespace

index View::size() const {
    return std::accumulate(shape.begin(), shape.end(), index(1), std::multiplies<>());
}

std::pair<const char*, const char*> View::range() const {
    const auto* begin = static_cast<const char*>(data);
    if (size() == 0) return {begin, begin};
    const char* end = begin + width();
    for (std::size_t a = 0; a < shape.size(); ++a) {
        const index reach = strides[a] * (shape[a] - 1) * width();
        (reach < 0 ? begin : end) += reach;
    }
    return {begin, end};
}

bool View::contiguous() const {
    if (size() == 0) return true;
    index stride = 1;
    for (std::size_t a = shape.size(); a-- > 0;) {
        if (shape[a] != 1 && strides[a] != stride) return false;
        stride *= shape[a];
    }
    return true;
}

bool View::overlaps_itself() const {
    if (size() == 0) return false;
    std::vector<std::pair<index, index>> axes;
    for (std::size_t a = 0; a < shape.size(); ++a) {
        if (shape[a] > 1) axes.emplace_back(std::abs(strides[a]), shape[a]);
    }
    std::sort(axes.begin(), axes.end());
    index reach = 1;
    for (const auto& [stride, extent] : axes) {
        if (stride < reach) return true;
        reach = stride * (extent - 1) + reach;
    }
    return false;
}

bool View::refresh(const py::handle& object, const char* name) {
    if (exchange) {
        dlpack::Tensor t{};
        if (exchange->tensor_of(object.ptr(), &t) != 0) throw py::error_already_set();
        check_device(t.device, name);
        const index* const now = t.strides;
        const bool same = t.dtype == dtype && std::size_t(t.ndim) == shape.size() && now &&
                          std::equal(shape.begin(), shape.end(), t.shape) &&
                          std::equal(strides.begin(), strides.end(), now);
        if (same) {
            data = address_of(t, name);
        } else {
            *this = by_exchange(*exchange, object, name);
        }
        return !same;
    }
    View now = hold(object, name);
    const bool same = now.dtype == dtype && now.shape == shape && now.strides == strides;
    *this = std::move(now);
    return !same;
}

void* View::address_if_unchanged(PyObject* object) const {
    return address_if_alike(*exchange, object, dtype, int(shape.size()), shape.data(),
                            strides.data());
}

View hold(const py::handle& object, const char* name) {
    if (py::isinstance<py::array>(object)) {
        refuse_mask(object, name);
        return from_numpy(object, name);
    }
    if (py::hasattr(object, "__dlpack__")) return from_capsule(object, name);
    raise_type(name, "an array (NumPy or DLPack)", type_of(object));
}

View peek(const py::handle& object, const char* name, bool with_stream) {
    const dlpack::Exchange* const exchange =
        py::isinstance<py::array>(object) ? nullptr : exchange_of(object);
    if (!exchange || (with_stream && !exchange->current_stream)) return hold(object, name);
    return by_exchange(*exchange, object, name);
}

void check_writable(const View& view, const char* name) {
    if (!view.writable) raise_value(name, "a writable array", "a read-only one");
}
void check_contiguous(const View& view, const char* name) {
    if (!view.contiguous()) {
        raise_value(name, "a C-contiguous array", "strides " + text(view.strides));
    }
}
void check_dtype(const View& view, const char* name, dlpack::DataType wanted) {
    if (view.dtype != wanted) raise_type(name, "dtype " + name_of(wanted), view.dtype_name());
}
void check_shape(const View& view, const char* name, const std::vector<index>& wanted) {
    if (view.shape != wanted) raise_value(name, "shape " + text(wanted), text(view.shape));
}

View borrow(const py::handle& object, const char* name, Access access) {
    View v = hold(object, name);
    check_contiguous(v, name);
    if (access == Access::write) check_writable(v, name);
    return v;
}

View borrow(const py::handle& object, const char* name, Access access, dlpack::DataType dtype) {
    View v = borrow(object, name, access);
    check_dtype(v, name, dtype);
    return v;
}

View borrow(const py::handle& object, const char* name, Access access, dlpack::DataType dtype,
            const std::vector<index>& shape) {
    View v = borrow(object, name, access, dtype);
    check_shape(v, name, shape);
    return v;
}

Dtype real_dtype(const View& view, const char* name) {
    if (view.dtype == dlpack::float32) return Dtype::f32;
    if (view.dtype == dlpack::float64) return Dtype::f64;
    if (view.dtype == dlpack::bfloat16) return Dtype::bf16;
    if (view.dtype == dlpack::float16) return Dtype::f16;
    raise_type(name, "dtype float32, float64, bfloat16 or float16", view.dtype_name());
}

std::string name_of(const dlpack::DataType& type) {
    constexpr const char* kinds[] = {"int", "uint", "float", "void", "bfloat", "complex", "bool"};
    if (type.lanes != 1 || type.code > 6) return "an unknown dtype";
    return type.code == dlpack::boolean ? "bool" : kinds[type.code] + std::to_string(type.bits);
}

SP_END
