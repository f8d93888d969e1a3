// Batch normalization on arrays that Python has allocated, in any layout.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <optional>
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
constexpr int most_arrays = 20;  // that a call has

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
        pieces_.reserve(most_arrays);
        owners_.reserve(most_arrays);
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

    // One value has no unbiased variance, and no derivative.
    void require_variance() const {
        const index least = shape.count_of(shape.groups() - 1);
        if (least == 1) {
            raise_value("x", "more than 1 value per channel when training", text(x_.shape_list()));
        }
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

std::string kind_of(const py::object& x) { return py::str(py::type::of(x).attr("__name__")); }

Activation activation_of(const py::object& word) {
    if (word.is_none()) return Activation::none;
    if (!py::isinstance<py::str>(word)) raise_type("activation", "None or a word", kind_of(word));
    const auto name = word.cast<std::string>();
    for (std::size_t i = 1; i < std::size(activation_words); ++i) {
        if (name == activation_words[i]) return Activation(i);
    }
    raise_value("activation", "None or one of batch_norm_activations", name);
}

// A name that Python looks up without making a string of it.
struct Name {
    explicit Name(const char* text) : text(text), interned(PyUnicode_InternFromString(text)) {}
    const char* text;
    py::handle interned;
};
// The fields of saddlepoint.norm.Saved.
struct Names {
    Name x{"x"}, axis{"axis"}, ghost{"ghost"}, training{"training"}, count{"count"},
        weight{"weight"}, bias{"bias"}, residual{"residual"}, statistics{"statistics"},
        gate{"gate"}, activation{"activation"}, negative_slope{"negative_slope"};
};
const Names& names() {
    static const Names all;
    return all;
}

// A saddlepoint.norm.Saved.
class Record {
   public:
    explicit Record(const py::handle& saved) : saved_(saved) {}

    bool training() const { return get<bool>(names().training, "True or False"); }

    Call layout() const {
        const index ghost = training() ? get<index>(names().ghost, "an int") : 0;
        return {(*this)[names().x], get<int>(names().axis, "an int"), ghost};
    }
    // Without statistics and gate, which the forward pass writes.
    Call inputs(const py::object& residual) const {
        Call call = layout();
        call.norm.weight = call.values((*this)[names().weight], "weight", Access::read);
        call.norm.bias = call.values((*this)[names().bias], "bias", Access::read);
        call.norm.activation = activation_of((*this)[names().activation]);
        call.norm.slope = get<double>(names().negative_slope, "a number");
        call.norm.residual = call.input(residual, "residual");
        return call;
    }
    void statistics(Call& call, Access access) const {
        call.statistics((*this)[names().statistics], access);
    }
    std::uint8_t* gate(Call& call, Access access) const {
        return call.gate((*this)[names().gate], access);
    }
    // All that a derivative needs.
    Call all() const {
        Call call = inputs((*this)[names().residual]);
        statistics(call, Access::read);
        call.norm.gate = gate(call, Access::read);
        return call;
    }
    // As in Parts.
    double weighs() const {
        if (!training()) return 0.0;
        const auto count = get<double>(names().count, "a number");
        return count > 0.0 ? 1.0 / count : -1.0;
    }
    Parts parts(Call& call, const py::object& sums, const std::string& stage, int number) const {
        const bool all = stage == "all";
        Parts parts{all || stage == "sums", all || stage == "more_sums", all || stage == "apply"};
        if (!parts.sum && !parts.more && !parts.apply) {
            raise_value("stage", "all, sums, more_sums or apply", stage);
        }
        if (!all && sums.is_none()) raise_type("sums", "an array for one stage", "None");
        const Access access = parts.sum || parts.more ? Access::write : Access::read;
        parts.sums = call.table(sums, "sums", number, access);
        parts.weighs = weighs();
        return parts;
    }

   private:
    py::object operator[](const Name& name) const { return py::getattr(saved_, name.interned); }
    template <class T>
    T get(const Name& name, const char* what) const {
        const py::object value = (*this)[name];
        py::detail::make_caster<T> caster;
        if (caster.load(value, true)) return caster;
        raise_type((std::string("saved.") + name.text).c_str(), what, kind_of(value));
    }

    py::handle saved_;
};

}  // namespace

void bind_batch_norm(py::module_& m) {
    using namespace py::literals;
    const py::kw_only by_name;
    const py::none none;

    // Each activation, and whether it is curved.
    py::dict activations;
    for (std::size_t i = 1; i < std::size(activation_words); ++i) {
        activations[activation_words[i]] = !piecewise_linear(Activation(i));
    }
    m.attr("batch_norm_activations") = activations;

    // (parts of the batch that have statistics of their own, bytes of a gate)
    m.def(
        "batch_norm_sizes",
        [](const py::object& saved) {
            const Shape shape = Record(saved).layout().shape;
            return std::pair(shape.groups(), gate_bytes(shape));
        },
        "saved"_a);

    m.def(
        "batch_norm_moments",
        [](const py::object& x, int axis, const py::object& out) {
            Call call(x, axis, 0);
            double* const to = call.table(out, "out", 2, Access::write);
            call.check(false);
            call.go([&](const Stream& s) { moments(s, call.shape, call.norm.x, to); });
        },
        "x"_a, "axis"_a, "out"_a);

    // Writes out, and statistics and gate of `saved`. Statistics are the batch's in training,
    // running ones in evaluation, and what is in `saved` where they are given. Without momentum
    // running ones are the average over all batches, of which `seen` were before.
    m.def(
        "batch_norm_forward",
        [](const py::object& saved, const py::object& out, const py::object& residual, bool given,
           double eps, const py::object& running_mean, const py::object& running_var,
           std::optional<double> momentum, double seen,
           std::optional<std::pair<double, double>> renorm, const py::object& noise) {
            const Record record(saved);
            Call call = record.inputs(residual);
            Origin how;
            how.source = given               ? Origin::given
                         : record.training() ? Origin::batch
                                             : Origin::running;
            const bool training = how.source == Origin::batch;
            if (training) call.require_variance();
            how.eps = eps;
            const Access access = training ? Access::write : Access::read;
            how.running_mean = call.values(running_mean, "running_mean", access);
            how.running_variance = call.values(running_var, "running_var", access);
            how.cumulative = !momentum;
            how.momentum = momentum.value_or(0.0);
            how.seen = seen;
            if (renorm) std::tie(how.r_max, how.d_max) = *renorm;
            if (!noise.is_none()) {
                how.seed = noise.attr("seed").cast<std::uint64_t>();
                how.step = noise.attr("step").cast<std::uint64_t>();
                how.noise_mean = noise.attr("mean").cast<double>();
                how.noise_scale = noise.attr("scale").cast<double>();
            }
            record.statistics(call, given ? Access::read : Access::write);
            std::uint8_t* const gate = record.gate(call, Access::write);
            void* const y = call.output(out, "out");
            call.check(!training);
            call.go([&](const Stream& s) { forward(s, call.norm, how, y, gate); });
        },
        "saved"_a, by_name, "out"_a, "residual"_a = none, "given"_a = false, "eps"_a = 0.0,
        "running_mean"_a = none, "running_var"_a = none, "momentum"_a = none, "seen"_a = 0.0,
        "renorm"_a = none, "noise"_a = none);

    m.def(
        "batch_norm_backward",
        [](const py::object& saved, const py::object& dy_, const py::object& dx_,
           const py::object& dresidual_, const py::object& dweight_, const py::object& dbias_,
           const py::object& sums, const std::string& stage) {
            const Record record(saved);
            Call call = record.all();
            const Parts parts = record.parts(call, sums, stage, backward_sums);
            const void* const dy = call.input(dy_, "dy");
            void* const dx = call.output(dx_, "dx");
            void* const dresidual = call.output(dresidual_, "dresidual");
            const Values dweight = call.values(dweight_, "dweight", Access::write);
            const Values dbias = call.values(dbias_, "dbias", Access::write);
            call.check(false);
            call.go([&](const Stream& s) {
                backward(s, call.norm, parts, dy, dx, dresidual, dweight, dbias);
            });
        },
        "saved"_a, by_name, "dy"_a, "dx"_a = none, "dresidual"_a = none, "dweight"_a = none,
        "dbias"_a = none, "sums"_a = none, "stage"_a = "all");

    const auto direction = [](Call& call, const py::object& x, const py::object& weight,
                              const py::object& bias, const py::object& residual) {
        return Direction{call.input(x, "x_tangent"), call.input(residual, "residual_tangent"),
                         call.values(weight, "weight_tangent", Access::read),
                         call.values(bias, "bias_tangent", Access::read)};
    };

    m.def(
        "batch_norm_tangent",
        [=](const py::object& saved, const py::object& x, const py::object& weight,
            const py::object& bias, const py::object& residual, const py::object& yt_,
            const py::object& sums, const std::string& stage) {
            const Record record(saved);
            Call call = record.all();
            const Parts parts = record.parts(call, sums, stage, tangent_sums);
            const Direction along = direction(call, x, weight, bias, residual);
            void* const yt = call.output(yt_, "y_tangent");
            call.check(false);
            call.go([&](const Stream& s) { tangent(s, call.norm, parts, along, yt); });
        },
        "saved"_a, by_name, "x_tangent"_a = none, "weight_tangent"_a = none,
        "bias_tangent"_a = none, "residual_tangent"_a = none, "y_tangent"_a = none, "sums"_a = none,
        "stage"_a = "all");

    m.def(
        "batch_norm_second_tangent",
        [=](const py::object& saved, const py::object& x, const py::object& weight,
            const py::object& bias, const py::object& residual, const py::object& x2,
            const py::object& weight2, const py::object& bias2, const py::object& residual2,
            const py::object& ytt_, const py::object& sums, const std::string& stage) {
            const Record record(saved);
            Call call = record.all();
            const Parts parts = record.parts(call, sums, stage, second_tangent_sums);
            const Direction along = direction(call, x, weight, bias, residual);
            const Direction other{call.input(x2, "x_tangent2"),
                                  call.input(residual2, "residual_tangent2"),
                                  call.values(weight2, "weight_tangent2", Access::read),
                                  call.values(bias2, "bias_tangent2", Access::read)};
            void* const ytt = call.output(ytt_, "y_tangent2");
            call.check(false);
            call.go(
                [&](const Stream& s) { second_tangent(s, call.norm, parts, along, other, ytt); });
        },
        "saved"_a, by_name, "x_tangent"_a = none, "weight_tangent"_a = none,
        "bias_tangent"_a = none, "residual_tangent"_a = none, "x_tangent2"_a = none,
        "weight_tangent2"_a = none, "bias_tangent2"_a = none, "residual_tangent2"_a = none,
        "y_tangent2"_a = none, "sums"_a = none, "stage"_a = "all");

    // The tangent of the backward pass; and y' where it is wanted. Where `sums` are everybody's,
    // `own` are this process's, which its share of the parameters' gradients is of.
    m.def(
        "batch_norm_second",
        [=](const py::object& saved, const py::object& x, const py::object& weight,
            const py::object& bias, const py::object& residual, const py::object& dy_,
            const py::object& dyt_, const py::object& dxt_, const py::object& dresidual_t_,
            const py::object& yt_, const py::object& dweight_t_, const py::object& dbias_t_,
            const py::object& sums, const py::object& own, const std::string& stage) {
            const Record record(saved);
            Call call = record.all();
            Parts parts = record.parts(call, sums, stage, second_sums);
            parts.own = call.table(own, "own", second_sums, Access::read);
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
        },
        "saved"_a, by_name, "x_tangent"_a = none, "weight_tangent"_a = none,
        "bias_tangent"_a = none, "residual_tangent"_a = none, "dy"_a, "dy_tangent"_a = none,
        "dx_tangent"_a = none, "dresidual_tangent"_a = none, "y_tangent"_a = none,
        "dweight_tangent"_a = none, "dbias_tangent"_a = none, "sums"_a = none, "own"_a = none,
        "stage"_a = "all");
}

SP_END
