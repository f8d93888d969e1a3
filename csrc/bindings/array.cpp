#include "bindings/array.hpp"

#include <algorithm>

SP_BEGIN

namespace {

std::string type_of(const py::handle& object) { return Py_TYPE(object.ptr())->tp_name; }

// NumPy's name of a dtype, spelled out here because asking Python for it costs a microsecond.
std::string numpy_name(const py::dtype& type) {
    const std::string bits = std::to_string(8 * type.itemsize());
    switch (type.kind()) {
        case 'f': return "float" + bits;
        case 'i': return "int" + bits;
        case 'u': return "uint" + bits;
        default: return py::str(type);
    }
}

// Only subclasses pay for the question.
void refuse_mask(const py::handle& object, const char* name) {
    const auto plain = py::detail::npy_api::get().PyArray_Type_;
    if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) != reinterpret_cast<PyObject*>(plain) &&
        py::hasattr(object, "filled")) {
        raise_type(name, "an array without a mask (x.filled(…))", "a masked array");
    }
}

Layout from_numpy(const py::handle& object, const char* name) {
    const auto a = py::reinterpret_borrow<py::array>(object);
    const py::dtype type = a.dtype();
    Layout l;
    l.array.data = const_cast<void*>(a.data());
    l.array.dtype = numpy_name(type);
    if (type.byteorder() != '=' && type.byteorder() != '|') {
        raise_type(name, "native byte order", "swapped bytes");
    }
    l.array.shape.assign(a.shape(), a.shape() + a.ndim());
    l.strides.reserve(a.ndim());
    for (py::ssize_t i = 0; i < a.ndim(); ++i) {
        if (a.itemsize() && a.strides(i) % a.itemsize() != 0) {
            raise_value(name, "strides of whole elements", std::to_string(a.strides(i)) + " bytes");
        }
        l.strides.push_back(a.itemsize() ? a.strides(i) / a.itemsize() : 0);
    }
    l.array.owner = a;
    l.writable = a.writeable();
    return l;
}

Layout from_tensor(const dlpack::Tensor& tensor) {
    Layout l;
    l.array.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    l.array.dtype = name_of(tensor.dtype);
    l.array.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
    if (tensor.strides) {
        l.strides.assign(tensor.strides, tensor.strides + tensor.ndim);
    } else {
        index stride = 1;
        l.strides.resize(tensor.ndim);
        for (int i = tensor.ndim - 1; i >= 0; --i) {
            l.strides[i] = stride;
            stride *= tensor.shape[i];
        }
    }
    l.device_type = tensor.device.type;
    l.device_id = tensor.device.id;
    return l;
}

// The capsule stays as it is: its destructor gives the tensor back when `owner` goes.
Layout from_dlpack(const py::handle& exporter, const char* name) {
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
    Layout l;
    bool ours = false;
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
        const auto* managed = static_cast<dlpack::ManagedVersioned*>(
            PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
        l = from_tensor(managed->tensor);
        l.writable = !(managed->flags & dlpack::read_only);
        ours = exported_here(*managed);
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
        l = from_tensor(
            static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor);
    } else {
        raise_type(name, "a DLPack capsule", type_of(capsule));
    }
    // JAX arrays never change, whatever their capsule says.
    if (type_of(object).find("ArrayImpl") != std::string::npos) l.writable = false;
    l.array.owner = py::make_tuple(object, capsule);
    if (!ours) l.array.owner = until_done(std::move(l.array.owner));
    return l;
}

bool contiguous(const Layout& l) {
    if (l.array.size() == 0) return true;
    index stride = 1;
    for (std::size_t i = l.array.shape.size(); i-- > 0;) {
        if (l.array.shape[i] != 1 && l.strides[i] != stride) return false;
        stride *= l.array.shape[i];
    }
    return true;
}

const char* word(int type) {
    switch (type) {
        case dlpack::cpu:
        case dlpack::cuda_host: return "cpu";
        case dlpack::cuda:
        case dlpack::cuda_managed: return "cuda";
        default: return "another one";
    }
}

}  // namespace

std::string name_of(const dlpack::DataType& type) {
    constexpr const char* kinds[] = {"int", "uint", "float", "void", "bfloat", "complex", "bool"};
    if (type.lanes != 1 || type.code > 6) return "an unknown dtype";
    return type.code == 6 ? "bool" : kinds[type.code] + std::to_string(type.bits);
}

const dlpack::Exchange* exchange_of(const py::handle& object) {
    const auto type =
        py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())));
    const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
    const auto* const api = static_cast<const dlpack::Exchange*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    return api->major == 1 && api->tensor_of ? api : nullptr;
}

void raise_type(const char* name, const std::string& wanted, const std::string& got) {
    throw py::type_error(std::string(name) + ": expected " + wanted + ", got " + got);
}
void raise_value(const char* name, const std::string& wanted, const std::string& got) {
    throw py::value_error(std::string(name) + ": expected " + wanted + ", got " + got);
}

std::string text(const std::vector<index>& shape) {
    std::string s = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        s += (i ? ", " : "") + std::to_string(shape[i]);
    }
    return s + (shape.size() == 1 ? ",)" : ")");
}

index Array::bytes() const {
    const auto digit = dtype.find_first_of("0123456789");
    return size() * (digit == std::string::npos ? 1 : std::stoi(dtype.substr(digit)) / 8);
}

void check_device(const dlpack::Device& device, const char* name) {
    if (device.type == device_type() && device.id == 0) return;
    if (std::string(word(device.type)) != device_word()) {
        raise_type(name, std::string("device ") + device_word(), word(device.type));
    }
    if (device.type == dlpack::cuda && device.id != 0) {
        raise_type(name, "device 0", "device " + std::to_string(device.id));
    }
}

Layout inspect(const py::handle& object, const char* name) {
    Layout l;
    if (py::isinstance<py::array>(object)) {
        refuse_mask(object, name);
        l = from_numpy(object, name);
    } else if (py::hasattr(object, "__dlpack__")) {
        l = from_dlpack(object, name);
    } else {
        raise_type(name, "an array (NumPy or DLPack)", type_of(object));
    }
    check_device({l.device_type, l.device_id}, name);
    return l;
}

Array borrow(const py::handle& object, const char* name, Access access) {
    const Layout l = inspect(object, name);
    if (!contiguous(l)) raise_value(name, "a C-contiguous array", "strides " + text(l.strides));
    if (access == Access::write && !l.writable)
        raise_value(name, "a writable array", "a read-only one");
    return l.array;
}

Array borrow(const py::handle& object, const char* name, Access access, const std::string& dtype) {
    Array a = borrow(object, name, access);
    if (a.dtype != dtype) raise_type(name, "dtype " + dtype, a.dtype);
    return a;
}

Array borrow(const py::handle& object, const char* name, Access access, const std::string& dtype,
             const std::vector<index>& shape) {
    Array a = borrow(object, name, access, dtype);
    if (a.shape != shape) raise_value(name, "shape " + text(shape), text(a.shape));
    return a;
}

void refuse_overlap(const std::vector<std::pair<const char*, const Array*>>& written,
                    const std::vector<std::pair<const char*, const Array*>>& read) {
    struct Piece {
        const char *begin, *end, *name;
        bool written;
    };
    std::vector<Piece> pieces;
    const auto add = [&](const auto& list, bool writes) {
        for (const auto& [name, a] : list) {
            const auto* begin = static_cast<const char*>(a->data);
            if (a->bytes()) pieces.push_back({begin, begin + a->bytes(), name, writes});
        }
    };
    add(written, true);
    add(read, false);
    std::sort(pieces.begin(), pieces.end(),
              [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
    // The furthest-reaching piece so far, of all and of the written ones.
    const Piece *any = nullptr, *writer = nullptr;
    for (const Piece& piece : pieces) {
        const Piece* other = piece.written ? any : writer;
        if (other && other->end > piece.begin) {
            const char* name = piece.written ? piece.name : other->name;
            const char* with = piece.written ? other->name : piece.name;
            raise_value(name, "memory of its own", std::string("an overlap with ") + with);
        }
        if (!any || piece.end > any->end) any = &piece;
        if (piece.written && (!writer || piece.end > writer->end)) writer = &piece;
    }
}

SP_END
