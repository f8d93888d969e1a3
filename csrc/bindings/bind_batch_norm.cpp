// Batch normalization on arrays that Python has allocated, in any layout.
#include <algorithm>
#include <array>
#include <tuple>

#include "bindings/bind.hpp"
#include "bindings/view.hpp"
#include "core/buffer.hpp"
#include "norm/fused.hpp"
#include "ops/strided.hpp"

SP_BEGIN

namespace {

using namespace normalization;

constexpr int most_axes = strided_axes;

// How an array lies in memory; strides in elements.
struct Seen {
    void* data = nullptr;
    Dtype dtype = Dtype::f32;
    std::string other_dtype;  // one that is not among Dtype's
    int axes = 0;
    std::array<index, most_axes> shape{}, strides{};
    bool writable = true;
    py::object owner;
    const dlpack::Exchange* exchange = nullptr;  // null: through a capsule, on our stream

    index size() const {
        index n = 1;
        for (int a = 0; a < axes; ++a) n *= shape[a];
        return n;
    }
    std::vector<index> shape_list() const { return {shape.begin(), shape.begin() + axes}; }
    std::vector<index> stride_list() const { return {strides.begin(), strides.begin() + axes}; }
};

const char* word(Dtype dtype) {
    switch (dtype) {
        case Dtype::f32: return "float32";
        case Dtype::f64: return "float64";
        case Dtype::bf16: return "bfloat16";
        default: return "float16";
    }
}

void set_dtype(Seen& seen, const dlpack::DataType& type) {
    const bool real = type.lanes == 1 && type.code == 2;
    if (real && type.bits == 32) {
        seen.dtype = Dtype::f32;
    } else if (real && type.bits == 64) {
        seen.dtype = Dtype::f64;
    } else if (real && type.bits == 16) {
        seen.dtype = Dtype::f16;
    } else if (type.lanes == 1 && type.code == 4 && type.bits == 16) {
        seen.dtype = Dtype::bf16;
    } else {
        seen.other_dtype = name_of(type);
    }
}

Seen see(const py::handle& object, const char* name) {
    Seen seen;
    View v = peek(object, name, device_type() != dlpack::cpu);
    if (v.shape.size() > most_axes) {
        raise_value(name, "at most " + std::to_string(most_axes) + " axes",
                    std::to_string(v.shape.size()));
    }
    set_dtype(seen, v.dtype);
    seen.data = v.data;
    seen.axes = int(v.shape.size());
    std::copy(v.shape.begin(), v.shape.end(), seen.shape.begin());
    std::copy(v.strides.begin(), v.strides.end(), seen.strides.begin());
    seen.writable = v.writable;
    seen.owner = std::move(v.owner);
    seen.exchange = v.exchange;
    return seen;
}

// Stable; std::sort on so few makes compilers see accesses past the end.
template <class F>
void sort_axes(std::array<int, most_axes>& order, int axes, F&& before) {
    for (int i = 1; i < axes; ++i) {
        for (int j = i; j > 0 && before(order[j], order[j - 1]); --j) {
            std::swap(order[j], order[j - 1]);
        }
    }
}

// Copies between an array and a dense one, whose strides are `dense`.
void copy_elements(const Stream& stream, const Seen& a, const std::array<index, most_axes>& dense,
                   void* memory, bool gather) {
    std::array<int, most_axes> order{};
    int axes = 0;
    for (int i = 0; i < a.axes; ++i) {
        if (a.shape[i] != 1) order[axes++] = i;
    }
    sort_axes(order, axes, [&](int i, int j) { return dense[i] > dense[j]; });
    CopyPlan s;
    s.axes = axes;
    for (int k = 0; k < axes; ++k) {
        s.shape[k] = a.shape[order[k]];
        s.from[k] = (gather ? a.strides : dense)[order[k]];
        s.to[k] = (gather ? dense : a.strides)[order[k]];
    }
    copy_strided(stream, s, bytes_of(a.dtype), gather ? a.data : memory, gather ? memory : a.data);
}

// One call: its arrays, checked against x, and copies of those that lie otherwise.
class Call {
   public:
    Call(const py::handle& x, int channel_axis, index ghost)
        : stream_(current_stream()), x_(look(x, "x")) {
        if (!x_.other_dtype.empty()) {
            raise_type("x", "dtype float32, float64, bfloat16 or float16", x_.other_dtype);
        }
        if (x_.axes < 2) {
            raise_value("x", "at least 2 axes", text(x_.shape_list()));
        }
        lay_out(channel_axis < 0 ? channel_axis + x_.axes : channel_axis, ghost);
        norm.shape = shape;
        norm.x = input(x, "x");
    }

    Shape shape{};
    Norm norm;

    const void* input(const py::handle& object, const char* name) {
        if (object.is_none()) return nullptr;
        const Seen a = alike(object, name);
        track(a, name, false);
        if (lies_as_x(a)) return address(a);
        gathered_.emplace_back(a, scratch(a));
        return gathered_.back().second;
    }

    void* output(const py::handle& object, const char* name) {
        if (object.is_none()) return nullptr;
        const Seen a = alike(object, name);
        writable(a, name);
        track(a, name, true);
        if (lies_as_x(a)) return address(a);
        scattered_.emplace_back(a, scratch(a));
        return scattered_.back().second;
    }

    Values values(const py::handle& object, const char* name, Access access) {
        if (object.is_none()) return {};
        const Seen a = look(object, name);
        const bool sixteen = bytes_of(shape.dtype) == 2;
        const Dtype wide = shape.dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
        if (!a.other_dtype.empty() || (a.dtype != wide && !(sixteen && a.dtype == shape.dtype))) {
            raise_type(name, std::string("dtype ") + word(wide),
                       a.other_dtype.empty() ? word(a.dtype) : a.other_dtype);
        }
        if (a.axes != 1 || a.shape[0] != shape.channels) {
            raise_value(name, "shape " + text({shape.channels}), text(a.shape_list()));
        }
        if (shape.channels > 1 && a.strides[0] != 1) {
            raise_value(name, "a C-contiguous array", "strides " + text(a.stride_list()));
        }
        if (access == Access::write) writable(a, name);
        track(a, name, access == Access::write);
        return {address(a), a.dtype};
    }

    // (number, groups, channels) in float64.
    double* table(const py::handle& object, const char* name, index number, Access access) {
        if (object.is_none()) return nullptr;
        return static_cast<double*>(
            memory(object, name, access, "float64", {number, shape.groups(), shape.channels}));
    }
    void statistics(const py::handle& object, Access access) {
        const Seen a = look(object, "statistics");
        norm.all_tables = a.axes == 3 && a.shape[0] == 6;
        norm.statistics = table(object, "statistics", norm.all_tables ? 6 : 2, access);
    }
    std::uint8_t* gate(const py::handle& object, Access access) {
        if (object.is_none()) return nullptr;
        return static_cast<std::uint8_t*>(
            memory(object, "gate", access, "uint8", {gate_bytes(shape)}));
    }

    // `in_place`: an output may be an input, element by element.
    void check(bool in_place) const {
        for (std::size_t i = 0; i < pieces_.size(); ++i) {
            for (std::size_t j = 0; j < i; ++j) {
                const Piece &a = pieces_[i], &b = pieces_[j];
                if (!a.written && !b.written) continue;
                if (a.end <= b.begin || b.end <= a.begin) continue;
                const bool same = a.begin == b.begin && a.end == b.end && a.written != b.written;
                if (same && in_place) continue;
                raise_value(a.written ? a.name : b.name, "memory of its own",
                            std::string("an overlap with ") + (a.written ? b.name : a.name));
            }
        }
    }

    // Without the lock of Python, on the stream that the arrays' library works on.
    template <class F>
    void go(F&& f) {
        const py::gil_scoped_release release;
        // What came through a capsule is in order with our own stream.
        const bool mixed = foreign_ && ours_;
        if (mixed) make_consumer_wait(current_stream(), std::intptr_t(stream_handle(stream_)));
        for (const auto& [a, memory] : gathered_) copy_elements(stream_, a, strides_, memory, true);
        f(stream_);
        for (const auto& [a, memory] : scattered_) {
            copy_elements(stream_, a, strides_, memory, false);
        }
        if (mixed) make_consumer_wait(stream_, std::intptr_t(stream_handle(current_stream())));
    }

   private:
    struct Piece {
        const char *begin, *end, *name;
        bool written;
    };

    // An empty array may have no address.
    static void* address(const Seen& a) {
        static constexpr char nothing = 0;
        return a.data ? a.data : const_cast<char*>(&nothing);
    }

    static void writable(const Seen& a, const char* name) {
        if (!a.writable) raise_value(name, "a writable array", "a read-only one");
    }

    void track(const Seen& a, const char* name, bool written) {
        const auto* begin = static_cast<const char*>(a.data);
        const char* end = begin + bytes_of(a.dtype);
        if (a.size() == 0) return;
        for (int i = 0; i < a.axes; ++i) {
            const index reach = a.strides[i] * (a.shape[i] - 1) * bytes_of(a.dtype);
            (reach < 0 ? begin : end) += reach;
        }
        pieces_.push_back({begin, end, name, written});
        if (a.owner) owners_.push_back(a.owner);
    }
    // A dense array of its own dtype and shape.
    void* memory(const py::handle& object, const char* name, Access access, const char* dtype,
                 const std::vector<index>& wanted) {
        const Seen a = look(object, name);
        const std::string got = a.other_dtype.empty() ? word(a.dtype) : a.other_dtype;
        if (got != dtype) raise_type(name, std::string("dtype ") + dtype, got);
        if (a.shape_list() != wanted)
            raise_value(name, "shape " + text(wanted), text(a.shape_list()));
        index stride = 1;
        for (int i = a.axes - 1; i >= 0; --i) {
            if (a.shape[i] > 1 && a.strides[i] != stride && a.size() > 0) {
                raise_value(name, "a C-contiguous array", "strides " + text(a.stride_list()));
            }
            stride *= a.shape[i];
        }
        if (access == Access::write) writable(a, name);
        const auto* const begin = static_cast<const char*>(a.data);
        const index bytes = a.size() * (got == "uint8" ? 1 : bytes_of(a.dtype));
        if (bytes) pieces_.push_back({begin, begin + bytes, name, access == Access::write});
        if (a.owner) owners_.push_back(a.owner);
        return address(a);
    }

    // PyTorch has negatives and zeros that are not in memory, which the exchange says nothing of.
    static void in_memory(const py::handle& object, const char* name) {
        static PyObject* const lazy[] = {PyUnicode_InternFromString("is_neg"),
                                         PyUnicode_InternFromString("_is_zerotensor")};
        for (PyObject* const question : lazy) {
            PyObject* const answer = PyObject_CallMethodObjArgs(object.ptr(), question, nullptr);
            const bool yes = answer == Py_True;
            Py_XDECREF(answer);
            PyErr_Clear();  // others have no such method
            if (yes) {
                raise_value(name, "its numbers in memory", "a lazy negative or zero (clone it)");
            }
        }
    }

    // An array, and what stream it is on.
    Seen look(const py::handle& object, const char* name) {
        Seen a = see(object, name);
        if (a.exchange) in_memory(object, name);
        if (!a.exchange) {
            ours_ = true;
        } else if (device_type() != dlpack::cpu && !foreign_) {
            void* theirs = nullptr;
            if (a.exchange->current_stream(device_type(), 0, &theirs) != 0) {
                throw py::error_already_set();
            }
            stream_ = foreign_stream(reinterpret_cast<std::uintptr_t>(theirs));
            foreign_ = true;
        }
        return a;
    }

    Seen alike(const py::handle& object, const char* name) {
        Seen a = look(object, name);
        if (!a.other_dtype.empty() || a.dtype != x_.dtype) {
            raise_type(name, std::string("dtype ") + word(x_.dtype),
                       a.other_dtype.empty() ? word(a.dtype) : a.other_dtype);
        }
        if (a.axes != x_.axes || a.shape != x_.shape) {
            raise_value(name, "shape " + text(x_.shape_list()), text(a.shape_list()));
        }
        return a;
    }

    bool lies_as_x(const Seen& a) const {
        for (int i = 0; i < a.axes; ++i) {
            if (a.shape[i] > 1 && a.strides[i] != strides_[i] && shape.size() > 0) return false;
        }
        return true;
    }

    void* scratch(const Seen& a) {
        buffers_.emplace_back(stream_, std::size_t(a.size() * bytes_of(a.dtype)));
        return buffers_.back().data();
    }

    // The axes in the order of x's memory; a sub-batch needs the first axis outermost.
    void lay_out(int channel, index ghost) {
        if (channel < 0 || channel >= x_.axes) {
            raise_value("layout", "a name for each of " + std::to_string(x_.axes) + " axes",
                        "another one");
        }
        std::array<int, most_axes> order{};
        for (int i = 0; i < x_.axes; ++i) order[i] = i;
        sort_axes(order, x_.axes, [&](int i, int j) { return x_.strides[i] > x_.strides[j]; });
        // Axes of one element are wherever they are wanted: the first outermost, channels next.
        const auto front = [&](int axis) {
            const auto at = std::find(order.begin(), order.begin() + x_.axes, axis);
            std::rotate(order.begin(), at, at + 1);
        };
        if (x_.shape[channel] == 1 && x_.axes > 1) front(channel);
        const bool parts = ghost > 0 && ghost < x_.shape[0];
        if ((channel != 0 && x_.shape[channel] == 1) || parts || x_.shape[0] == 1) front(0);
        index stride = 1;
        for (int k = x_.axes - 1; k >= 0; --k) {
            strides_[order[k]] = stride;
            stride *= x_.shape[order[k]];
        }
        shape = {1, x_.shape[channel], 1, 1, x_.dtype};
        bool inside = false;
        for (int k = 0; k < x_.axes; ++k) {
            if (order[k] == channel) {
                inside = true;
            } else {
                (inside ? shape.inner : shape.outer) *= x_.shape[order[k]];
            }
        }
        if (shape.inner == 0) shape.outer = 0, shape.inner = 1;
        shape.group = std::max<index>(shape.outer, 1);
        if (parts) shape.group = shape.outer / x_.shape[0] * ghost;
    }

    Stream stream_;
    bool foreign_ = false, ours_ = false;  // whether arrays are of other streams, and of our own
    Seen x_;
    std::array<index, most_axes> strides_{};
    std::vector<Piece> pieces_;
    std::vector<py::object> owners_;
    std::vector<Buffer> buffers_;
    std::vector<std::pair<Seen, void*>> gathered_, scattered_;
};

// (x, channel axis, sub-batch, weight, bias, statistics, activation, slope, residual, gate)
Call call_of(const py::tuple& norm) {
    if (norm.size() != 10) raise_value("norm", "10 entries", std::to_string(norm.size()));
    Call call(norm[0], norm[1].cast<int>(), norm[2].cast<index>());
    call.norm.weight = call.values(norm[3], "weight", Access::read);
    call.norm.bias = call.values(norm[4], "bias", Access::read);
    call.norm.activation = Activation(norm[6].cast<int>());
    call.norm.slope = norm[7].cast<double>();
    call.norm.residual = call.input(norm[8], "residual");
    return call;
}
Call call_of_saved(const py::tuple& norm) {
    Call call = call_of(norm);
    call.statistics(norm[5], Access::read);
    call.norm.gate = call.gate(norm[9], Access::read);
    return call;
}

// (sums, weighs, stages): the stages of Parts as bits, the first is 1.
Parts parts_of(Call& call, const py::tuple& parts, int number) {
    if (parts.size() != 3) raise_value("parts", "3 entries", std::to_string(parts.size()));
    const int stages = parts[2].cast<int>();
    const Access access = stages & 3 ? Access::write : Access::read;
    return {(stages & 1) != 0, (stages & 2) != 0, (stages & 4) != 0,
            call.table(parts[0], "sums", number, access), parts[1].cast<double>()};
}

}  // namespace

void bind_batch_norm(py::module_& m) {
    m.def("batch_norm_gate_bytes", [](const py::object& x, int axis, index ghost) {
        return gate_bytes(Call(x, axis, ghost).shape);
    });

    m.def("batch_norm_moments", [](const py::object& x, int axis, const py::object& out) {
        Call call(x, axis, 0);
        double* const to = call.table(out, "out", 2, Access::write);
        call.check(false);
        call.go([&](const Stream& s) { moments(s, call.shape, call.norm.x, to); });
    });

    // running: (mean, variance, momentum, batches seen), momentum None for the average of all
    // batches; renorm: (r_max, d_max); noise: (seed, step, mean, scale).
    m.def("batch_norm_forward",
          [](const py::tuple& norm, int source, double eps, const py::tuple& running,
             const py::object& renorm, const py::object& noise, const py::object& y_) {
              Call call = call_of(norm);
              Origin how;
              how.source = Origin::Source(source);
              how.eps = eps;
              const bool training = how.source == Origin::batch;
              const Access access = training ? Access::write : Access::read;
              how.running_mean = call.values(running[0], "running_mean", access);
              how.running_variance = call.values(running[1], "running_var", access);
              how.cumulative = running[2].is_none();
              if (!how.cumulative) how.momentum = running[2].cast<double>();
              how.seen = running[3].cast<double>();
              if (!renorm.is_none()) {
                  std::tie(how.r_max, how.d_max) = renorm.cast<std::pair<double, double>>();
              }
              if (!noise.is_none()) {
                  std::tie(how.seed, how.step, how.noise_mean, how.noise_scale) =
                      noise.cast<std::tuple<std::uint64_t, std::uint64_t, double, double>>();
              }
              call.statistics(norm[5], how.source == Origin::given ? Access::read : Access::write);
              std::uint8_t* const gate = call.gate(norm[9], Access::write);
              void* const y = call.output(y_, "out");
              call.check(!training);
              call.go([&](const Stream& s) { forward(s, call.norm, how, y, gate); });
          });

    m.def("batch_norm_backward",
          [](const py::tuple& norm, const py::tuple& parts_, const py::object& dy_,
             const py::object& dx_, const py::object& dresidual_, const py::object& dweight_,
             const py::object& dbias_) {
              Call call = call_of_saved(norm);
              const Parts parts = parts_of(call, parts_, backward_sums);
              const void* const dy = call.input(dy_, "dy");
              void* const dx = call.output(dx_, "dx");
              void* const dresidual = call.output(dresidual_, "dresidual");
              const Values dweight = call.values(dweight_, "dweight", Access::write);
              const Values dbias = call.values(dbias_, "dbias", Access::write);
              call.check(false);
              call.go([&](const Stream& s) {
                  backward(s, call.norm, parts, dy, dx, dresidual, dweight, dbias);
              });
          });

    const auto direction = [](Call& call, const py::object& x, const py::object& weight,
                              const py::object& bias, const py::object& residual) {
        return Direction{call.input(x, "x_tangent"), call.input(residual, "residual_tangent"),
                         call.values(weight, "weight_tangent", Access::read),
                         call.values(bias, "bias_tangent", Access::read)};
    };

    m.def("batch_norm_tangent",
          [=](const py::tuple& norm, const py::tuple& parts_, const py::object& x,
              const py::object& weight, const py::object& bias, const py::object& residual,
              const py::object& yt_) {
              Call call = call_of_saved(norm);
              const Parts parts = parts_of(call, parts_, tangent_sums);
              const Direction along = direction(call, x, weight, bias, residual);
              void* const yt = call.output(yt_, "y_tangent");
              call.check(false);
              call.go([&](const Stream& s) { tangent(s, call.norm, parts, along, yt); });
          });

    m.def("batch_norm_second_tangent", [=](const py::tuple& norm, const py::tuple& parts_,
                                           const py::object& x, const py::object& weight,
                                           const py::object& bias, const py::object& residual,
                                           const py::object& x2, const py::object& weight2,
                                           const py::object& bias2, const py::object& residual2,
                                           const py::object& ytt_) {
        Call call = call_of_saved(norm);
        const Parts parts = parts_of(call, parts_, second_tangent_sums);
        const Direction along = direction(call, x, weight, bias, residual);
        const Direction other{call.input(x2, "x_tangent2"),
                              call.input(residual2, "residual_tangent2"),
                              call.values(weight2, "weight_tangent2", Access::read),
                              call.values(bias2, "bias_tangent2", Access::read)};
        void* const ytt = call.output(ytt_, "y_tangent2");
        call.check(false);
        call.go([&](const Stream& s) { second_tangent(s, call.norm, parts, along, other, ytt); });
    });

    m.def("batch_norm_second",
          [=](const py::tuple& norm, const py::tuple& parts_, const py::object& x,
              const py::object& weight, const py::object& bias, const py::object& residual,
              const py::object& dy_, const py::object& dyt_, const py::object& dxt_,
              const py::object& dresidual_t_, const py::object& yt_, const py::object& dweight_t_,
              const py::object& dbias_t_) {
              Call call = call_of_saved(norm);
              const Parts parts = parts_of(call, parts_, second_sums);
              const Direction along = direction(call, x, weight, bias, residual);
              const void* const dy = call.input(dy_, "dy");
              const void* const dyt = call.input(dyt_, "dy_tangent");
              void* const dxt = call.output(dxt_, "dx_tangent");
              void* const dresidual_t = call.output(dresidual_t_, "dresidual_tangent");
              void* const yt = call.output(yt_, "y_tangent");
              const Values dweight_t = call.values(dweight_t_, "dweight_tangent", Access::write);
              const Values dbias_t = call.values(dbias_t_, "dbias_tangent", Access::write);
              call.check(false);
              call.go([&](const Stream& s) {
                  second(s, call.norm, parts, along, dy, dyt, dxt, dresidual_t, yt, dweight_t,
                         dbias_t);
              });
          });
}

SP_END
