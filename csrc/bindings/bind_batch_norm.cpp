// Batch normalization on arrays that Python has allocated, in any layout.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <deque>
#include <iterator>
#include <optional>
#include <tuple>

#include "bindings/bind.hpp"
#include "bindings/overlap.hpp"
#include "bindings/streams.hpp"
#include "core/buffer.hpp"
#include "norm/fused.hpp"
#include "ops/strided.hpp"

SP_BEGIN

namespace {

using namespace normalization;

constexpr int most_axes = strided_axes;

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
void copy_elements(const Stream& stream, const View& a, const std::array<index, most_axes>& dense,
                   void* memory, bool gather) {
    std::array<int, most_axes> order{};
    int axes = 0;
    for (std::size_t i = 0; i < a.shape.size(); ++i) {
        if (a.shape[i] != 1) order[axes++] = int(i);
    }
    sort_axes(order, axes, [&](int i, int j) { return dense[i] > dense[j]; });
    CopyPlan s;
    s.axes = axes;
    for (int k = 0; k < axes; ++k) {
        s.shape[k] = a.shape[order[k]];
        const index here = a.strides[order[k]], there = dense[order[k]];
        s.from[k] = gather ? here : there;
        s.to[k] = gather ? there : here;
    }
    copy_strided(stream, s, a.width(), gather ? a.data : memory, gather ? memory : a.data);
}

// One call: its arrays, checked against x, and copies of those that lie otherwise.
class Call {
   public:
    Call(const py::handle& x, int channel_axis, index ghost) : x_(look(x, "x")) {
        shape.dtype = real_dtype(x_, "x");
        if (x_.shape.size() < 2) raise_value("x", "at least 2 axes", text(x_.shape));
        const int axes = int(x_.shape.size());
        lay_out(channel_axis < 0 ? channel_axis + axes : channel_axis, ghost);
        norm.shape = shape;
        norm.x = place(x_, "x");
    }
    Call(const Call&) = delete;  // its views are pointed to
    Call(Call&&) = default;

    Shape shape{};
    Norm norm;

    const void* input(const py::handle& object, const char* name) {
        return object.is_none() ? nullptr : place(alike(object, name), name);
    }

    void* output(const py::handle& object, const char* name) {
        if (object.is_none()) return nullptr;
        const View& a = alike(object, name);
        track(a, name, Access::write);
        if (lies_as_x(a)) return address(a);
        scattered_.emplace_back(&a, scratch(a));
        return scattered_.back().second;
    }

    Values values(const py::handle& object, const char* name, Access access) {
        if (object.is_none()) return {};
        const View& a = look(object, name);
        const dlpack::DataType wide = shape.dtype == Dtype::f64 ? dlpack::float64 : dlpack::float32;
        const bool narrow = bytes_of(shape.dtype) == 2 && a.dtype == x_.dtype;
        if (!narrow) check_dtype(a, name, wide);
        check_shape(a, name, {shape.channels});
        check_contiguous(a, name);
        track(a, name, access);
        return {address(a), real_dtype(a, name)};
    }

    // (number, groups, channels) in float64.
    double* table(const py::handle& object, const char* name, index number, Access access) {
        if (object.is_none()) return nullptr;
        return table(look(object, name), name, number, access);
    }
    void statistics(const py::handle& object, Access access) {
        const View& a = look(object, "statistics");
        norm.all_tables = a.shape.size() == 3 && a.shape[0] == 6;
        norm.statistics = table(a, "statistics", norm.all_tables ? 6 : 2, access);
    }
    std::uint8_t* gate(const py::handle& object, Access access) {
        if (object.is_none()) return nullptr;
        return static_cast<std::uint8_t*>(
            memory(look(object, "gate"), "gate", access, dlpack::uint8, {gate_bytes(shape)}));
    }

    // One value has no unbiased variance, and no derivative.
    void require_variance() const {
        const index least = shape.count_of(shape.groups() - 1);
        if (least == 1) {
            raise_value("x", "more than 1 value per channel when training", text(x_.shape));
        }
    }

    // `in_place`: an output may be an input, element by element.
    void check(bool in_place) { memory_.check(in_place); }

    // Without the lock of Python, on the stream that the arrays' library works on.
    template <class F>
    void go(F&& f) {
        streams_.go([&](const Stream& stream) {
            for (const auto& [a, memory] : gathered_) {
                copy_elements(stream, *a, strides_, memory, true);
            }
            f(stream);
            for (const auto& [a, memory] : scattered_) {
                copy_elements(stream, *a, strides_, memory, false);
            }
        });
    }

   private:
    // An empty array may have no address.
    static void* address(const View& a) {
        static constexpr char nothing = 0;
        return a.data ? a.data : const_cast<char*>(&nothing);
    }

    void track(const View& a, const char* name, Access access) {
        if (access == Access::write) {
            check_writable(a, name);
            memory_.writes(a, name);
        } else {
            memory_.reads(a, name);
        }
    }

    // An input's elements in the order of x.
    const void* place(const View& a, const char* name) {
        track(a, name, Access::read);
        if (lies_as_x(a)) return address(a);
        gathered_.emplace_back(&a, scratch(a));
        return gathered_.back().second;
    }

    // A dense array of its own dtype and shape.
    void* memory(const View& a, const char* name, Access access, dlpack::DataType dtype,
                 const std::vector<index>& wanted) {
        check_dtype(a, name, dtype);
        check_shape(a, name, wanted);
        check_contiguous(a, name);
        track(a, name, access);
        return address(a);
    }

    double* table(const View& a, const char* name, index number, Access access) {
        return static_cast<double*>(
            memory(a, name, access, dlpack::float64, {number, shape.groups(), shape.channels}));
    }

    // An array, and what stream it is on.
    const View& look(const py::handle& object, const char* name) {
        const View& a = views_.emplace_back(streams_.look(object, name));
        if (a.shape.size() > most_axes) {
            raise_value(name, "at most " + std::to_string(most_axes) + " axes",
                        std::to_string(a.shape.size()));
        }
        return a;
    }

    const View& alike(const py::handle& object, const char* name) {
        const View& a = look(object, name);
        check_dtype(a, name, x_.dtype);
        check_shape(a, name, x_.shape);
        return a;
    }

    bool lies_as_x(const View& a) const {
        for (std::size_t i = 0; i < a.shape.size(); ++i) {
            if (a.shape[i] > 1 && a.strides[i] != strides_[i] && shape.size() > 0) return false;
        }
        return true;
    }

    void* scratch(const View& a) {
        buffers_.emplace_back(streams_.stream(), std::size_t(a.bytes()));
        return buffers_.back().data();
    }

    // The axes in the order of x's memory; a sub-batch needs the first axis outermost.
    void lay_out(int channel, index ghost) {
        const int axes = int(x_.shape.size());
        if (channel < 0 || channel >= axes) {
            raise_value("layout", "a name for each of " + std::to_string(axes) + " axes",
                        "another one");
        }
        std::array<int, most_axes> order{};
        for (int i = 0; i < axes; ++i) order[i] = i;
        sort_axes(order, axes, [&](int i, int j) { return x_.strides[i] > x_.strides[j]; });
        // Axes of one element are wherever they are wanted: the first outermost, channels next.
        const auto front = [&](int axis) {
            const auto at = std::find(order.begin(), order.begin() + axes, axis);
            std::rotate(order.begin(), at, at + 1);
        };
        if (x_.shape[channel] == 1) front(channel);
        const bool parts = ghost > 0 && ghost < x_.shape[0];
        if ((channel != 0 && x_.shape[channel] == 1) || parts || x_.shape[0] == 1) front(0);
        index stride = 1;
        for (int k = axes - 1; k >= 0; --k) {
            strides_[order[k]] = stride;
            stride *= x_.shape[order[k]];
        }
        shape = {1, x_.shape[channel], 1, 1, shape.dtype};
        bool inside = false;
        for (int k = 0; k < axes; ++k) {
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

    Streams streams_;
    std::deque<View> views_;  // pointed to by the next
    Overlaps memory_;
    const View& x_;
    std::array<index, most_axes> strides_{};
    std::vector<Buffer> buffers_;
    std::vector<std::pair<const View*, void*>> gathered_, scattered_;
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
