// A planned step: parameters and states are checked and laid out once, and again where one of them
// moved; gradients are checked at every step.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>

#include "bindings/array.hpp"
#include "bindings/bind.hpp"
#include "optim/update.hpp"

SP_BEGIN

namespace {

struct RuleInfo {
    const char* name;
    int states;
    std::vector<const char*> hyper;
    bool internal;
};
#define SP_INFO(R)                                             \
    {R<float>::name,                                           \
     R<float>::states,                                         \
     {std::begin(R<float>::hyper), std::end(R<float>::hyper)}, \
     internal<R<float>>},
const std::vector<RuleInfo>& rules() {
    static const std::vector<RuleInfo> all{SP_RULES(SP_INFO)};
    return all;
}
#undef SP_INFO

// What an object's memory looks like at the moment, without taking hold of it.
struct View {
    void* data = nullptr;
    dlpack::DataType dtype{};
    std::vector<index> shape, strides;  // in elements

    bool alike(const dlpack::Tensor& t) const {
        if (t.ndim != int(shape.size()) || t.dtype.code != dtype.code ||
            t.dtype.bits != dtype.bits) {
            return false;
        }
        // A loop, since a call of memcmp costs more than the few comparisons.
        bool same = true;
        for (int a = 0; a < t.ndim; ++a) {
            same = same && t.shape[a] == shape[a] && t.strides[a] == strides[a];
        }
        return same;
    }
    index size() const {
        return std::accumulate(shape.begin(), shape.end(), index(1), std::multiplies<>());
    }
    index width() const { return dtype.bits / 8; }
    // The bytes between its first and its last element.
    std::pair<const char*, const char*> range() const {
        const auto* begin = static_cast<const char*>(data);
        if (size() == 0) return {begin, begin};
        const char* end = begin + width();
        for (std::size_t a = 0; a < shape.size(); ++a) {
            const index reach = strides[a] * (shape[a] - 1) * width();
            (reach < 0 ? begin : end) += reach;
        }
        return {begin, end};
    }
};

dlpack::DataType code_of(const std::string& name, const char* what) {
    constexpr std::pair<const char*, dlpack::DataType> known[] = {{"float32", {2, 32, 1}},
                                                                  {"float64", {2, 64, 1}},
                                                                  {"bfloat16", {4, 16, 1}},
                                                                  {"float16", {2, 16, 1}},
                                                                  {"int16", {0, 16, 1}}};
    for (const auto& [word, code] : known) {
        if (name == word) return code;
    }
    raise_type(what, "dtype float32, float64, bfloat16 or float16", name);
}

Dtype dtype_of(const dlpack::DataType& type, const char* what) {
    if (type.lanes == 1 && type.code == 2 && type.bits == 32) return Dtype::f32;
    if (type.lanes == 1 && type.code == 2 && type.bits == 64) return Dtype::f64;
    if (type.lanes == 1 && type.code == 4 && type.bits == 16) return Dtype::bf16;
    if (type.lanes == 1 && type.code == 2 && type.bits == 16) return Dtype::f16;
    raise_type(what, "dtype float32, float64, bfloat16 or float16", name_of(type));
}

// An array of a tensor: the object, and how it looked when it was laid out.
struct Bound {
    py::object object;
    View view;
    const dlpack::Exchange* exchange = nullptr;
    bool writable = true;
    bool fixed = false;  // an array of our own, which never moves
    bool valid = false;  // it was looked at and found good
    explicit operator bool() const { return valid; }
    // The address of what hands itself out and may be another object by now; null where it looks
    // otherwise.
    void* still(PyObject* now) const {
        dlpack::Tensor t{};
        if (exchange->tensor_of(now, &t) != 0) {
            PyErr_Clear();
            return nullptr;
        }
        return view.alike(t) ? static_cast<char*>(t.data) + t.byte_offset : nullptr;
    }
};

using Owners = std::vector<py::object>;  // of memory in use

// Looks at an object again; false when nothing but the address may have changed.
bool look(Bound& bound, const char* name, Owners& owners) {
    if (bound.exchange) {
        dlpack::Tensor t{};
        if (bound.exchange->tensor_of(bound.object.ptr(), &t) != 0) throw py::error_already_set();
        check_device(t.device, name);
        bound.view.data = static_cast<char*>(t.data) + t.byte_offset;
        if (!bound.view.data && !std::count(t.shape, t.shape + t.ndim, 0)) {
            raise_value(name, "a tensor with memory", "one without");
        }
        if (bound.view.alike(t)) return false;
        bound.view.dtype = t.dtype;
        bound.view.shape.assign(t.shape, t.shape + t.ndim);
        bound.view.strides.assign(t.strides, t.strides + t.ndim);
        return true;
    }
    const Layout l = inspect(bound.object, name);
    const dlpack::DataType dtype = code_of(l.array.dtype, name);
    const bool same = bound.view.shape == l.array.shape && bound.view.strides == l.strides &&
                      bound.view.dtype.code == dtype.code && bound.view.dtype.bits == dtype.bits;
    bound.view = {l.array.data, dtype, l.array.shape, l.strides};
    owners.push_back(l.array.owner);
    bound.writable = l.writable;
    return !same;
}

// Subclasses that keep their numbers in other tensors have no memory of their own; a lazily negated
// view has, with the other sign.
void refuse_wrappers(const py::handle& object, const char* name) {
    if (py::hasattr(object, "__tensor_flatten__")) {
        raise_type(name, "a plain tensor", Py_TYPE(object.ptr())->tp_name);
    }
    if (py::hasattr(object, "is_neg") && py::cast<bool>(object.attr("is_neg")())) {
        raise_type(name, "a resolved tensor", "a lazily negated one");
    }
}

Bound bound(const py::handle& object, const char* name, Access access, Owners& owners) {
    Bound b;
    refuse_wrappers(object, name);
    b.object = py::reinterpret_borrow<py::object>(object);
    b.exchange = exchange_of(object);
    look(b, name, owners);
    if (access == Access::write && !b.writable) {
        raise_value(name, "a writable array", "a read-only one");
    }
    // Not a plain static: an import may let another thread come here, which would wait for this
    // one.
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> own;
    own.call_once_and_store_result(
        [] { return py::module_::import("saddlepoint.optim.arrays").attr("State"); });
    b.fixed = py::isinstance(object, own.get_stored());
    b.valid = true;
    return b;
}

// Whether no two elements of an array share memory, for strides that nest.
bool dense_enough(const View& v) {
    if (v.size() == 0) return true;
    std::vector<std::pair<index, index>> axes;
    for (std::size_t a = 0; a < v.shape.size(); ++a) {
        if (v.shape[a] > 1) axes.emplace_back(std::abs(v.strides[a]), v.shape[a]);
    }
    std::sort(axes.begin(), axes.end());
    index reach = 1;
    for (const auto& [stride, extent] : axes) {
        if (stride < reach) return false;
        reach = stride * (extent - 1) + reach;
    }
    return true;
}

py::array numpy_view(const View& v) {
    std::vector<py::ssize_t> strides;
    for (index s : v.strides) strides.push_back(s * v.width());
    const py::capsule base(v.data, [](void*) {});
    return py::array(py::dtype("V" + std::to_string(v.width())),
                     std::vector<py::ssize_t>(v.shape.begin(), v.shape.end()), strides, v.data,
                     base);
}

bool share_memory(const View& a, const View& b) {
    const auto [a0, a1] = a.range();
    const auto [b0, b1] = b.range();
    if (a0 == a1 || b0 == b1 || a1 <= b0 || b1 <= a0) return false;
    // Their ranges meet; NumPy solves whether their elements do.
    return py::cast<bool>(
        py::module_::import("numpy").attr("shares_memory")(numpy_view(a), numpy_view(b)));
}

// All memory that a step writes, in order of address.
class Written {
   public:
    void clear() { pieces_.clear(); }
    void add(const View& view, const char* name) {
        const auto [begin, end] = view.range();
        if (begin != end) pieces_.push_back({begin, end, &view, name});
    }
    // Raises ValueError where two pieces share memory.
    void settle() {
        std::sort(pieces_.begin(), pieces_.end(),
                  [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
        nested_ = false;
        ends_.clear();
        for (const Piece& piece : pieces_) ends_.push_back(piece.end);
        for (std::size_t i = 0; i + 1 < pieces_.size(); ++i) {
            for (std::size_t j = i + 1; j < pieces_.size() && pieces_[j].begin < pieces_[i].end;
                 ++j) {
                nested_ = true;
                refuse(pieces_[i], *pieces_[j].view, pieces_[j].name);
            }
        }
    }
    void refuse_sharing(const View& view, const char* name) const {
        const auto [begin, end] = view.range();
        if (begin == end) return;
        if (nested_) {
            for (const Piece& piece : pieces_) refuse(piece, view, name);
            return;
        }
        for (std::size_t at = first_after(begin); at < pieces_.size(); ++at) {
            if (pieces_[at].begin >= end) break;
            refuse(pieces_[at], view, name);
        }
    }
    // Whether nothing that is written begins or ends within a range of addresses.
    bool clear_of(const char* begin, const char* end) const {
        if (nested_) return false;
        const std::size_t at = first_after(begin);
        return at == pieces_.size() || pieces_[at].begin >= end;
    }

   private:
    struct Piece {
        const char *begin, *end;
        const View* view;
        const char* name;
    };
    static void refuse(const Piece& piece, const View& other, const char* name) {
        if (share_memory(*piece.view, other)) {
            raise_value(piece.name, "memory of its own", std::string("an overlap with ") + name);
        }
    }
    std::size_t first_after(const char* address) const {
        return std::upper_bound(ends_.begin(), ends_.end(), address) - ends_.begin();
    }
    std::vector<Piece> pieces_;
    std::vector<const char*> ends_;  // of the pieces, close together for the search
    bool nested_ = false;            // ranges meet, though no elements do
};

struct Entry {
    Bound p, gradient, ema, copy, remainder;
    std::vector<Bound> states;
    std::vector<Bound> clock;  // where the owner reads the step count and what the rule carries
    bool ready = false;        // what is beside it is there
    bool laid = false;         // and it was laid out as it is
    bool matrix = false;       // numbered in C order; states have shapes of their own
    const PyTypeObject* gradient_type = nullptr;
    // Of the layout.
    std::vector<index> extents, logical;
    std::array<std::vector<index>, 5 + max_states> strides;

    // Whether something beside it is written also where it has no gradient.
    bool followed() const { return ema || copy; }
    // All arrays beside the parameter, with what messages call them.
    template <class F>
    void for_each_beside(F&& f) {
        for (Bound& s : states) f(s, "state");
        for (Bound& s : clock) f(s, "step");
        if (ema) f(ema, "ema");
        if (copy) f(copy, "copies");
        if (remainder) f(remainder, "remainder");
    }
};

// What a tensor that hands itself out looked like, and where: all that has to be read again at
// every step, close together, since thousands of tensors do not stay in the cache.
struct Known {
    static constexpr int most_axes = 4;
    const dlpack::Exchange* exchange = nullptr;  // null: not known, or not this way
    void* data = nullptr;
    int axes = 0;
    dlpack::DataType dtype{};
    index shape[most_axes], strides[most_axes];

    Known() = default;
    Known(const Bound& b) {
        if (!b.exchange || b.view.shape.size() > most_axes) return;
        exchange = b.exchange;
        data = b.view.data;
        axes = int(b.view.shape.size());
        dtype = b.view.dtype;
        std::copy(b.view.shape.begin(), b.view.shape.end(), shape);
        std::copy(b.view.strides.begin(), b.view.strides.end(), strides);
    }
    // Its address now; null where anything else changed.
    void* still(PyObject* object) const {
        dlpack::Tensor t{};
        if (exchange->tensor_of(object, &t) != 0) {
            PyErr_Clear();  // said by who looks more closely
            return nullptr;
        }
        bool same = t.ndim == axes && t.dtype.code == dtype.code && t.dtype.bits == dtype.bits &&
                    t.device.type == device_type() && t.device.id == 0;
        for (int a = 0; same && a < axes; ++a) {
            same = t.shape[a] == shape[a] && t.strides[a] == strides[a];
        }
        return same ? static_cast<char*>(t.data) + t.byte_offset : nullptr;
    }
};
struct Glance {
    PyObject* object = nullptr;
    const PyGetSetDef* grad = nullptr;  // how its `.grad` is read, where nothing else comes first
    Known p, gradient;
    const PyTypeObject* gradient_type = nullptr;
    index before = 0, after = 0;  // bytes that a gradient reaches from its address
};

// An attribute's C function, to be called without looking it up again; null where it has none.
const PyGetSetDef* getter(PyTypeObject* type, const py::str& name) {
    if (type->tp_getattro != PyObject_GenericGetAttr) return nullptr;
    const py::object found = py::getattr(reinterpret_cast<PyObject*>(type), name.ptr(), py::none());
    if (Py_TYPE(found.ptr()) != &PyGetSetDescr_Type) return nullptr;
    return reinterpret_cast<PyGetSetDescrObject*>(found.ptr())->d_getset;  // lives with its type
}

class Update {
   public:
    Update(const py::sequence& params, const std::vector<std::string>& rule_names,
           const std::vector<int>& rows, const std::vector<index>& ids)
        : entries_(params.size()), tensors_(params.size()), stepper_(params.size()) {
        if (rule_names.size() != params.size() || rows.size() != params.size() ||
            ids.size() != params.size()) {
            raise_value("params", "a rule, a row and a number each", "other lengths");
        }
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            Entry& e = entries_[i];
            e.p = bound(params[i], "params", Access::write, owners_);
            (void)dtype_of(e.p.view.dtype, "params");
            Tensor& t = tensors_[i];
            t.rule = rule_number(rule_names[i]);
            t.hyper = rows[i];
            t.id = ids[i];
            e.matrix = t.rule == int(RuleId::Adafactor) || t.rule == int(RuleId::Muon);
            rows_ = std::max(rows_, rows[i] + 1);
            lay_out(i);
        }
        glances_.resize(entries_.size());
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            glances_[i].object = entries_[i].p.object.ptr();
            glances_[i].grad = getter(Py_TYPE(glances_[i].object), grad_name_);
        }
        moved_ = true;
        settle();
        release();
    }

    // The arrays beside parameter i. `clock`, if any, are single numbers on the host: the step
    // count and what the rule carries. They show the clock after each step, and set it when
    // changed.
    void bind_arrays(std::size_t i, const py::sequence& states, const py::object& ema,
                     const py::object& copy, const py::object& remainder,
                     const py::sequence& clock) {
        Entry& e = entries_.at(i);
        const RuleInfo& rule = rules()[tensors_[i].rule];
        if (!e.matrix && int(states.size()) != rule.states) {
            raise_value("states", std::to_string(rule.states) + " arrays",
                        std::to_string(states.size()));
        }
        Entry made;
        const bool wide = e.p.view.dtype.bits == 64;
        for (const auto& state : states) {
            Bound b = bound(state, "state", Access::write, owners_);
            if (!e.matrix) check_shape(b, e, "state");
            const Dtype dtype = dtype_of(b.view.dtype, "state");
            // Rules on matrices read their sums directly.
            const bool sums = tensors_[i].rule == int(RuleId::Adafactor);
            if ((dtype == Dtype::f64) != wide || (sums && dtype != Dtype::f32 && !wide)) {
                raise_type("state", wide ? "dtype float64" : "dtype float32",
                           name_of(b.view.dtype));
            }
            made.states.push_back(std::move(b));
        }
        const auto optional = [&](const py::object& object, const char* name) {
            if (object.is_none()) return Bound{};
            Bound b = bound(object, name, Access::write, owners_);
            check_shape(b, e, name);
            return b;
        };
        made.ema = optional(ema, "ema");
        made.copy = optional(copy, "copies");
        if (made.ema) (void)dtype_of(made.ema.view.dtype, "ema");
        if (made.copy) (void)dtype_of(made.copy.view.dtype, "copies");
        made.remainder = optional(remainder, "remainder");
        if (made.remainder &&
            (made.remainder.view.dtype.code != 0 || made.remainder.view.dtype.bits != 16)) {
            raise_type("remainder", "dtype int16", name_of(made.remainder.view.dtype));
        }
        if (made.remainder && dtype_of(e.p.view.dtype, "params") != Dtype::bf16) {
            raise_type("params", "dtype bfloat16 for a master of 32 bits", name_of(e.p.view.dtype));
        }
        for (const auto& number : clock) {
            Bound b = bound(number, "step", Access::write, owners_);
            const Dtype dtype = dtype_of(b.view.dtype, "step");
            if (b.view.size() != 1 || bytes_of(dtype) == 2 || backend_is_cuda()) {
                raise_value("step", "one float32 or float64 number on the host",
                            name_of(b.view.dtype) + " of shape " + text(b.view.shape));
            }
            made.clock.push_back(std::move(b));
        }
        e.states = std::move(made.states);
        e.clock = std::move(made.clock);
        e.ema = std::move(made.ema);
        e.copy = std::move(made.copy);
        e.remainder = std::move(made.remainder);
        e.ready = true;
        lay_out(i);
        moved_ = stale_ = true;
        show_clock(i);
    }

    // Whether these lists, one after the other, hold our parameters.
    bool holds(const py::list& lists) const {
        std::size_t i = 0;
        for (const auto& list : lists) {
            const auto items = py::reinterpret_borrow<py::list>(list);
            for (const auto& p : items) {
                if (i == entries_.size() || p.ptr() != glances_[i].object) return false;
                ++i;
            }
        }
        return i == entries_.size();
    }

    // Runs a step on gradients: a sequence with None where there is none, or None for the
    // parameters' own `.grad`. `hyper` has a row of numbers for each row that the parameters name.
    // Gives the parameters whose arrays are missing or lie elsewhere than they did; nothing was
    // done then, and they have to be bound.
    std::vector<std::size_t> run(const py::object& grads,
                                 const std::vector<std::vector<double>>& hyper, double unscale,
                                 std::optional<double> max_norm, bool check, bool zero,
                                 double ema_weight, std::optional<std::uint64_t> seed,
                                 const py::sequence& rates, const py::object& scale,
                                 const py::object& found_inf,
                                 std::optional<std::uintptr_t> stream) {
        struct AtEnd {
            Update& update;
            ~AtEnd() { update.release(); }
        } const at_end{*this};
        if (int(hyper.size()) < rows_) {
            raise_value("hyper", std::to_string(rows_) + " rows", std::to_string(hyper.size()));
        }
        std::vector<double> rows(hyper.size() * max_hyper);
        for (std::size_t r = 0; r < hyper.size(); ++r) {
            if (hyper[r].size() > max_hyper) {
                raise_value("hyper", "at most 12 numbers a row", std::to_string(hyper[r].size()));
            }
            std::copy(hyper[r].begin(), hyper[r].end(), rows.begin() + r * max_hyper);
        }
        StepOptions options;
        options.unscale = unscale;
        options.norm = max_norm.has_value() || check;
        options.max_norm = max_norm.value_or(INFINITY);
        options.check = check;
        options.zero = zero;
        options.ema_weight = ema_weight;
        options.random = seed.has_value();
        options.seed = seed.value_or(0);
        std::vector<Bound> numbers;
        options.scale = scalar(scale, "scale", numbers);
        options.found_inf = scalar(found_inf, "found_inf", numbers);
        std::vector<Scalar> scalars;
        for (const auto& rate : rates) scalars.push_back(scalar(rate, "lr", numbers));
        const std::vector<std::size_t> missing = collect(grads, zero);
        if (!missing.empty()) return missing;
        {
            // While others run they may replace the memory of what they own: hold it, where that
            // costs little beside the step, or else let nobody run.
            const bool others_run = is_large();
            if (others_run) hold(numbers);
            if (others_run || looked_ || !numbers.empty()) refuse_moved(numbers);
            std::optional<py::gil_scoped_release> unlocked;
            if (others_run) unlocked.emplace();
            stepper_.step(stream ? foreign_stream(*stream) : current_stream(), tensors_, rows,
                          scalars, options);
        }
        if (!backend_is_cuda() && !stepper_.skipped()) {
            for (std::size_t i = 0; i < entries_.size(); ++i) {
                if (held_[i]) show_clock(i);
            }
        }
        return missing;
    }

    // Shape, strides of a dense array in the parameter's order of axes, and dtype of parameter i.
    py::tuple dense(std::size_t i) const {
        check_number(i);
        const View& p = entries_[i].p.view;
        std::vector<std::size_t> order(p.shape.size());
        std::iota(order.begin(), order.end(), std::size_t(0));
        if (!entries_[i].matrix) {
            std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
                return std::abs(p.strides[a]) > std::abs(p.strides[b]);
            });
        }
        std::vector<index> strides(p.shape.size());
        index stride = 1;
        for (std::size_t k = order.size(); k-- > 0;) {
            strides[order[k]] = stride;
            stride *= p.shape[order[k]];
        }
        return py::make_tuple(py::tuple(py::cast(p.shape)), py::tuple(py::cast(strides)),
                              name_of(p.dtype));
    }

    bool all_stepped() const { return all_stepped_; }
    std::vector<std::size_t> stepped() const {
        std::vector<std::size_t> which;
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            if (tensors_[i].gradient.data) which.push_back(i);
        }
        return which;
    }

    py::tuple clock(std::size_t i) const {
        check_number(i);
        const Clock c = stepper_.clock(i);
        return py::make_tuple(c.steps, std::vector<double>(c.carry, c.carry + max_carried));
    }
    void set_clock(std::size_t i, index steps, const std::vector<double>& carry) {
        check_number(i);
        if (steps < 0) raise_value("steps", "at least 0", std::to_string(steps));
        Clock c;
        c.steps = steps;
        std::copy_n(carry.begin(), std::min<std::size_t>(carry.size(), max_carried), c.carry);
        stepper_.set_clock(i, c);
    }
    double norm() const { return stepper_.norm(); }
    bool skipped() const { return stepper_.skipped(); }

   private:
    // Takes the gradients, and looks at all that a step reads and writes. Gives what is missing.
    std::vector<std::size_t> collect(const py::object& grads, bool zero) {
        const bool own = grads.is_none();
        py::object fast;
        if (!own) {
            fast = py::reinterpret_steal<py::object>(PySequence_Fast(grads.ptr(), "grads"));
            if (!fast) throw py::error_already_set();
            const auto given = std::size_t(PySequence_Fast_GET_SIZE(fast.ptr()));
            if (given != entries_.size()) {
                raise_value("grads", std::to_string(entries_.size()) + " arrays",
                            std::to_string(given));
            }
        }
        std::vector<std::size_t> missing;
        all_stepped_ = true;
        looked_ = false;
        const std::size_t count = entries_.size();
        held_.assign(count, py::object());
        look_beside();
        for (std::size_t i = 0; i < count; ++i) {
            PyObject* const p = glances_[i].object;
            const PyGetSetDef* const get = glances_[i].grad;
            py::object g;
            if (!own) {
                g = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(fast.ptr(), i));
            } else {
                looked_ = looked_ || !get;
                g = py::reinterpret_steal<py::object>(get ? get->get(p, get->closure)
                                                          : PyObject_GetAttr(p, grad_name_.ptr()));
            }
            if (!g) throw py::error_already_set();
            if (g.is_none()) {
                all_stepped_ = false;
                if (entries_[i].followed() && !look_at_parameter(i)) missing.push_back(i);
                tensors_[i].gradient.data = nullptr;  // laid out again, it is the last one's
                continue;
            }
            if (!glance(i, g.ptr())) look_closely(i, g, zero, missing);
            held_[i] = std::move(g);
        }
        if (!missing.empty()) return missing;
        settle();
        read_clocks();
        for (std::size_t i = 0; i < count; ++i) {
            // Gradients at their old places were compared with what is written before.
            const void* const data = held_[i] ? tensors_[i].gradient.data : nullptr;
            if (data == checked_[i] || !data) continue;
            const char* const at = static_cast<const char*>(data);
            const Glance& known = glances_[i];
            if (!known.gradient.exchange ||
                !written_.clear_of(at + known.before, at + known.after)) {
                View view = entries_[i].gradient.view;
                view.data = const_cast<void*>(data);
                written_.refuse_sharing(view, "grads");
            }
            checked_[i] = data;
        }
        if (zero) refuse_shared_gradients();
        return missing;
    }

    // A tensor of one element that lies on our device; None for none.
    Scalar scalar(const py::handle& object, const char* name, std::vector<Bound>& numbers) {
        if (object.is_none()) return {};
        const Bound b = bound(object, name, Access::read, owners_);
        const Dtype dtype = dtype_of(b.view.dtype, name);
        if (bytes_of(dtype) == 2) {
            raise_type(name, "dtype float32 or float64", name_of(b.view.dtype));
        }
        if (b.view.size() != 1) raise_value(name, "one number", text(b.view.shape));
        numbers.push_back(b);
        return {b.view.data, dtype == Dtype::f64};
    }

    // An empty tensor may have no address, and yet be there.
    void* address(const View& v) { return v.data ? v.data : &nothing_; }

    static int rule_number(const std::string& name) {
        for (std::size_t r = 0; r < rules().size(); ++r) {
            if (name == rules()[r].name && !rules()[r].internal) return int(r);
        }
        raise_value("rule", "the name of an update rule", name);
    }

    void check_number(std::size_t i) const {
        if (i >= entries_.size()) {
            raise_value("i", "below " + std::to_string(entries_.size()), std::to_string(i));
        }
    }

    static void check_shape(const Bound& b, const Entry& e, const char* name) {
        if (b.view.shape != e.p.view.shape) {
            raise_value(name, "shape " + text(e.p.view.shape), text(b.view.shape));
        }
        if (!dense_enough(b.view)) {
            raise_value(name, "elements that share no memory", "strides " + text(b.view.strides));
        }
    }

    static void check_layouts(const Entry& e) {
        for (const Bound& s : e.states) {
            if (!e.matrix) check_shape(s, e, "state");
        }
        for (const auto& [b, name] : {std::pair(&e.ema, "ema"), std::pair(&e.copy, "copies"),
                                      std::pair(&e.remainder, "remainder")}) {
            if (*b) check_shape(*b, e, name);
        }
    }

    static bool backend_is_cuda() { return device_type() != dlpack::cpu; }

    // Finds what is beside the parameters again: whose memory others may replace is compared at
    // every step. Where something lies elsewhere it has to be bound anew.
    void look_beside() {
        if (stale_) {
            beside_.clear();
            for (std::size_t i = 0; i < entries_.size(); ++i) {
                entries_[i].for_each_beside([&](Bound& b, const char* name) {
                    if (!b.fixed) beside_.push_back({b, &b, name, i});
                });
            }
            stale_ = false;
        }
        for (const Beside& at : beside_) {
            bool stands = false;
            if (at.known.exchange) {
                stands = at.known.still(at.bound->object.ptr()) == at.known.data;
            } else if (entries_[at.entry].ready) {
                looked_ = true;
                const void* const before = at.bound->view.data;
                stands = !look(*at.bound, at.name, owners_) && at.bound->view.data == before;
            }
            if (!stands) {
                entries_[at.entry].ready = false;
                glances_[at.entry].p = {};
            }
        }
    }

    // Takes a clock that its owner has set.
    void read_clocks() {
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            const auto& shown = entries_[i].clock;
            if (shown.empty() || !held_[i]) continue;
            Clock clock = stepper_.clock(i);
            bool set = false;
            for (std::size_t k = 0; k < shown.size(); ++k) {
                const double now = number_at(shown[k]);
                const double before = k == 0 ? double(clock.steps) : clock.carry[k - 1];
                if (now == as_shown(shown[k], before)) continue;
                if (k > 0) {
                    clock.carry[k - 1] = now;
                } else if (now >= 0.0 && now < 9.2e18 && now == std::floor(now)) {
                    clock.steps = index(now);
                } else {
                    raise_value("step", "a whole number from 0", std::to_string(now));
                }
                set = true;
            }
            if (set) stepper_.set_clock(i, clock);
        }
    }

    void show_clock(std::size_t i) {
        const auto& shown = entries_[i].clock;
        if (shown.empty()) return;
        const Clock clock = stepper_.clock(i);
        for (std::size_t k = 0; k < shown.size(); ++k) {
            const double value = k == 0 ? double(clock.steps) : clock.carry[k - 1];
            if (shown[k].view.dtype.bits == 64) {
                *static_cast<double*>(shown[k].view.data) = value;
            } else {
                *static_cast<float*>(shown[k].view.data) = float(value);
            }
        }
    }
    static double number_at(const Bound& b) {
        return b.view.dtype.bits == 64 ? *static_cast<const double*>(b.view.data)
                                       : *static_cast<const float*>(b.view.data);
    }
    static double as_shown(const Bound& b, double value) {
        return b.view.dtype.bits == 64 ? value : float(value);
    }

    // The usual case: nothing changed but the gradient's address.
    bool glance(std::size_t i, PyObject* g) {
        const Glance& known = glances_[i];
        if (!known.p.exchange || !known.gradient.exchange || known.gradient_type != Py_TYPE(g)) {
            return false;
        }
        if (known.p.still(known.object) != known.p.data) return false;
        void* const data = known.gradient.still(g);
        if (data) tensors_[i].gradient.data = data;
        return data != nullptr;
    }

    void look_closely(std::size_t i, const py::object& g, bool zero,
                      std::vector<std::size_t>& missing) {
        if (!look_at_parameter(i)) {
            missing.push_back(i);
            return;
        }
        Entry& e = entries_[i];
        take_gradient(e, i, g, zero);
        Glance& known = glances_[i];
        known.p = e.p;
        known.gradient = e.gradient;
        known.gradient_type = e.gradient_type;
        const auto [begin, end] = e.gradient.view.range();
        const auto* const data = static_cast<const char*>(e.gradient.view.data);
        known.before = begin - data;
        known.after = end - data;
    }

    // Lays a parameter out again where it changed; false where something beside it is missing.
    bool look_at_parameter(std::size_t i) {
        Entry& e = entries_[i];
        looked_ = true;
        glances_[i].p = glances_[i].gradient = {};
        const dlpack::DataType dtype = e.p.view.dtype;
        const bool changed = look(e.p, "params", owners_);
        if (changed || !e.laid || address(e.p.view) != tensors_[i].p.data) {
            e.laid = false;
            if (name_of(e.p.view.dtype) != name_of(dtype)) {
                const dlpack::DataType now = std::exchange(e.p.view.dtype, dtype);
                raise_type("params", "dtype " + name_of(dtype) + ", as the optimizer began",
                           name_of(now));
            }
            if (e.ready) check_layouts(e);
            lay_out(i);
            moved_ = true;
        }
        return e.ready;
    }

    void take_gradient(Entry& e, std::size_t i, const py::object& g, bool zero) {
        Bound& b = e.gradient;
        const bool same_type = e.gradient_type == Py_TYPE(g.ptr());
        if (!same_type) {
            refuse_wrappers(g, "grads");
            b.exchange = exchange_of(g);
            e.gradient_type = Py_TYPE(g.ptr());
        }
        b.object = g;
        bool changed = true;
        try {
            changed = look(b, "grads", owners_);
        } catch (py::error_already_set&) {
            if (py::cast<bool>(py::getattr(b.object, "is_sparse", py::bool_(false)))) {
                raise_type("grads", "a dense array", "a sparse one");
            }
            throw;
        }
        if (changed || !b.valid) {
            b.valid = false;
            const Dtype dtype = dtype_of(b.view.dtype, "grads");
            const bool wide = e.p.view.dtype.bits == 64;
            if ((dtype == Dtype::f64) != wide) {
                raise_type("grads", "dtype " + name_of(e.p.view.dtype), name_of(b.view.dtype));
            }
            if (b.view.shape != e.p.view.shape) {
                raise_value("grads", "shape " + text(e.p.view.shape), text(b.view.shape));
            }
            b.valid = true;
            lay_out(i);
            checked_[i] = nullptr;
        }
        if (zero && !b.writable) raise_value("grads", "a writable array", "a read-only one");

        tensors_[i].gradient.data = address(b.view);
    }

    void refuse_shared_gradients() {
        looked_ = true;
        Written gradients;
        std::vector<View> views(entries_.size());
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            if (!held_[i]) continue;
            views[i] = entries_[i].gradient.view;
            views[i].data = tensors_[i].gradient.data;
            if (!dense_enough(views[i])) {
                raise_value("grads", "elements that share no memory",
                            "strides " + text(views[i].strides));
            }
            gradients.add(views[i], "grads");
        }
        gradients.settle();
    }

    // Compares all that is written, once it has moved.
    void settle() {
        if (!moved_) return;
        looked_ = true;
        written_.clear();
        for (const Entry& e : entries_) {
            if (!dense_enough(e.p.view)) {
                raise_value("params", "elements that share no memory",
                            "strides " + text(e.p.view.strides));
            }
            written_.add(e.p.view, "params");
            for (const Bound& s : e.states) written_.add(s.view, "state");
            for (const Bound& s : e.clock) written_.add(s.view, "step");
            if (e.ema) written_.add(e.ema.view, "ema");
            if (e.copy) written_.add(e.copy.view, "copies");
            if (e.remainder) written_.add(e.remainder.view, "remainder");
        }
        written_.settle();
        checked_.assign(entries_.size(), nullptr);
        moved_ = false;
    }

    // Orders the axes as the parameter lies in memory, merges those that are one for every array,
    // and leaves out the strides of arrays that lie alike.
    void lay_out(std::size_t i) {
        Entry& e = entries_[i];
        Tensor& t = tensors_[i];
        struct Piece {
            const Bound* bound;
            Strided* strided;
        };
        std::vector<Piece> pieces{{&e.p, &t.p},
                                  {&e.gradient, &t.gradient},
                                  {&e.ema, &t.ema},
                                  {&e.copy, &t.copy},
                                  {&e.remainder, &t.remainder}};
        for (std::size_t k = 0; k < e.states.size(); ++k) {
            pieces.push_back({&e.states[k], &t.state[k]});
        }
        e.laid = true;
        t.size = e.p.view.size();
        const View& p = e.p.view;
        std::vector<std::size_t> order;
        for (std::size_t a = 0; a < p.shape.size(); ++a) {
            if (p.shape[a] != 1) order.push_back(a);
        }
        std::vector<index> c_strides(p.shape.size());
        index stride = 1;
        for (std::size_t a = p.shape.size(); a-- > 0;) {
            c_strides[a] = stride;
            stride *= p.shape[a];
        }
        if (!e.matrix) {
            std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
                return std::abs(p.strides[a]) > std::abs(p.strides[b]);
            });
        }
        const auto whole = [&](const Piece& piece) {
            return *piece.bound && piece.bound->view.shape == p.shape;
        };
        // An axis joins the one outside it where every array steps over both as over one.
        std::vector<std::vector<std::size_t>> axes;
        for (std::size_t a : order) {
            bool joins = !axes.empty();
            for (const Piece& piece : pieces) {
                if (!joins || !whole(piece)) continue;
                const auto& s = piece.bound->view.strides;
                joins = s[axes.back().back()] == s[a] * p.shape[a];
            }
            joins = joins && c_strides[axes.back().back()] == c_strides[a] * p.shape[a];
            if (joins) {
                axes.back().push_back(a);
            } else {
                axes.push_back({a});
            }
        }
        e.extents.clear();
        for (const auto& axis : axes) {
            index extent = 1;
            for (std::size_t a : axis) extent *= p.shape[a];
            e.extents.push_back(extent);
        }
        if (e.extents.empty()) e.extents.push_back(1);
        const auto strides_of = [&](const std::vector<index>& s, std::vector<index>& out) {
            out.clear();
            for (const auto& axis : axes) out.push_back(s[axis.back()]);
            if (out.empty()) out.push_back(1);
            index linear = 1;
            bool is_linear = true;
            for (std::size_t a = e.extents.size(); a-- > 0;) {
                is_linear = is_linear && out[a] == linear;
                linear *= e.extents[a];
            }
            return is_linear;
        };
        t.axes = int(e.extents.size());
        t.extents = e.extents.data();
        t.logical = strides_of(c_strides, e.logical) || t.size == 0 ? nullptr : e.logical.data();
        for (std::size_t k = 0; k < pieces.size(); ++k) {
            const auto& [bound, strided] = pieces[k];
            if (!*bound) {
                *strided = {};
                continue;
            }
            const View& v = bound->view;
            strided->data = address(v);
            strided->dtype = v.dtype.code == 0 ? Dtype::i16 : dtype_of(v.dtype, "state");
            const bool linear =
                t.size == 0 || !whole({bound, strided}) || strides_of(v.strides, e.strides[k]);
            strided->strides = linear ? nullptr : e.strides[k].data();
        }
        if (e.matrix) {
            const std::size_t d = p.shape.size();
            t.rows = d > 1 ? p.shape[d - 2] : 1;
            t.columns = d > 0 ? p.shape[d - 1] : 1;
            t.batch = t.size == 0 ? 0 : t.size / (t.rows * t.columns);
        }
    }

    // Whether what has a gradient is so large, on average, that to hold it takes a fiftieth of its
    // step.
    bool is_large() const {
        index elements = 0, count = 0;
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            if (!held_[i]) continue;
            elements += tensors_[i].size;
            ++count;
        }
        return elements >= (index(1) << 14) * count;
    }

    // Holds all memory that a step reads or writes: what hands itself out, since the rest is held
    // since it was looked at.
    void hold(const std::vector<Bound>& numbers) {
        const auto add = [&](const Bound& b, PyObject* object) {
            if (!b.exchange) return;
            auto storage = py::reinterpret_steal<py::object>(
                PyObject_CallMethodNoArgs(object, storage_name_.ptr()));
            if (storage) {
                owners_.push_back(std::move(storage));
            } else if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
                PyErr_Clear();  // not PyTorch's, whose tensors alone change their storage
            } else {
                throw py::error_already_set();
            }
        };
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            if (held_[i]) add(entries_[i].gradient, held_[i].ptr());
            if (held_[i] || entries_[i].followed()) add(entries_[i].p, glances_[i].object);
        }
        for (const Beside& at : beside_) add(*at.bound, at.bound->object.ptr());
        for (const Bound& b : numbers) add(b, b.object.ptr());
    }

    // Another thread may have run since memory was looked at; none does from here on.
    void refuse_moved(const std::vector<Bound>& numbers) {
        const auto check = [&](const Known& known, const Bound& b, PyObject* object,
                               const void* data, const char* name) {
            if (!b.exchange) return;
            void* const now = known.exchange ? known.still(object) : b.still(object);
            if ((now ? now : &nothing_) != (data ? data : &nothing_)) {
                raise_value(name, "memory that stays where it is during a step", "other memory");
            }
        };
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            const Entry& e = entries_[i];
            const Glance& known = glances_[i];
            const Tensor& t = tensors_[i];
            if (held_[i]) {
                check(known.gradient, e.gradient, held_[i].ptr(), t.gradient.data, "grads");
            }
            if (held_[i] || e.followed()) check(known.p, e.p, known.object, t.p.data, "params");
        }
        for (const Beside& at : beside_) {
            check(at.known, *at.bound, at.bound->object.ptr(), at.bound->view.data, at.name);
        }
        for (const Bound& b : numbers) check({}, b, b.object.ptr(), b.view.data, "lr");
    }

    void release() {
        for (Entry& e : entries_) {
            if (e.gradient.object) e.gradient.object = py::object();
        }
        held_.clear();
        owners_.clear();
    }

    std::vector<Entry> entries_;
    std::vector<Tensor> tensors_;
    Stepper stepper_;
    Written written_;
    std::vector<const void*> checked_;  // where each gradient was when it was last compared
    int rows_ = 0;
    // An array beside a parameter, by all that is read of it again at every step.
    struct Beside {
        Known known;
        Bound* bound;
        const char* name;
        std::size_t entry;
    };
    std::vector<Beside> beside_;
    bool stale_ = true;  // something was bound since they were gathered
    std::vector<Glance> glances_;
    std::vector<py::object> held_;  // gradients, until the step was run; and likewise
    Owners owners_;
    bool moved_ = true, all_stepped_ = true;
    bool looked_ = false;  // in a way that may have let another thread run
    char nothing_ = 0;
    py::str grad_name_ = py::reinterpret_steal<py::str>(PyUnicode_InternFromString("grad"));
    py::str storage_name_ =
        py::reinterpret_steal<py::str>(PyUnicode_InternFromString("untyped_storage"));
};

}  // namespace

void bind_optim(py::module_& m) {
    py::class_<Update>(m, "Update", py::module_local())
        .def(py::init<const py::sequence&, const std::vector<std::string>&, const std::vector<int>&,
                      const std::vector<index>&>(),
             py::arg("params"), py::arg("rules"), py::arg("rows"), py::arg("ids"))
        .def("bind", &Update::bind_arrays, py::arg("i"), py::arg("states"),
             py::arg("ema") = py::none(), py::arg("copy") = py::none(),
             py::arg("remainder") = py::none(), py::arg("clock") = py::tuple())
        .def("holds", &Update::holds, py::arg("lists"))
        .def("run", &Update::run, py::arg("grads"), py::arg("hyper"), py::arg("unscale") = 1.0,
             py::arg("max_norm") = py::none(), py::arg("check") = false, py::arg("zero") = false,
             py::arg("ema_weight") = 0.0, py::arg("seed") = py::none(),
             py::arg("rates") = py::tuple(), py::arg("scale") = py::none(),
             py::arg("found_inf") = py::none(), py::arg("stream") = py::none())
        .def("dense", &Update::dense, py::arg("i"))
        .def_property_readonly("all_stepped", &Update::all_stepped)
        .def("stepped", &Update::stepped)
        .def("clock", &Update::clock, py::arg("i"))
        .def("set_clock", &Update::set_clock, py::arg("i"), py::arg("steps"), py::arg("carry"))
        .def_property_readonly("norm", &Update::norm)
        .def_property_readonly("skipped", &Update::skipped);
    py::dict table;
    for (const RuleInfo& rule : rules()) {
        if (!rule.internal) table[rule.name] = py::make_tuple(rule.states, py::cast(rule.hyper));
    }
    m.attr("rules") = table;
}

SP_END
