// A planned step: parameters and states are checked and laid out once, and again where one of them
// moved; gradients are checked at every step.
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "bindings/bind.hpp"
#include "bindings/overlap.hpp"
#include "optim/layout.hpp"

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

using Owners = std::vector<py::object>;  // of memory in use

// An array of a tensor: the object, and how it looked when it was laid out.
struct Bound {
    py::object object;
    View view;
    bool fixed = false;  // an array of our own, which never moves
    bool valid = false;  // it was checked and found good
    explicit operator bool() const { return valid; }
    // Whether more than its address changed. The owner of its memory goes to the others, which are
    // released when the step was run.
    bool refresh(const char* name, Owners& owners) {
        const bool changed = view.refresh(object, name);
        pass_owner(owners);
        return changed;
    }
    void pass_owner(Owners& owners) {
        if (view.owner) owners.push_back(std::exchange(view.owner, {}));
    }
};

// Subclasses that keep their numbers in other tensors have no memory of their own.
void refuse_wrappers(const py::handle& object, const char* name) {
    if (py::hasattr(object, "__tensor_flatten__")) {
        raise_type(name, "a plain tensor", Py_TYPE(object.ptr())->tp_name);
    }
}

Bound bound(const py::handle& object, const char* name, Access access, Owners& owners) {
    Bound b;
    refuse_wrappers(object, name);
    b.object = py::reinterpret_borrow<py::object>(object);
    b.view = peek(object, name);
    b.pass_owner(owners);
    if (access == Access::write) check_writable(b.view, name);
    // Not a plain static: an import may let another thread come here, which would wait for this
    // one.
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> own;
    own.call_once_and_store_result(
        [] { return py::module_::import("saddlepoint.optim.arrays").attr("State"); });
    b.fixed = py::isinstance(object, own.get_stored());
    b.valid = true;
    return b;
}

void check_no_overlap_within(const View& view, const char* name) {
    if (view.overlaps_itself()) {
        raise_value(name, "elements that share no memory", "strides " + text(view.strides));
    }
}

struct Entry {
    Bound p, gradient, ema, copy, remainder;
    std::vector<Bound> states;
    std::vector<Bound> clock;  // where the owner reads the step count and what the rule carries
    bool ready = false;        // what is beside it is there
    bool laid_out = false;     // and it was laid out as it is
    bool matrix = false;       // numbered in C order; states have shapes of their own
    const PyTypeObject* gradient_type = nullptr;
    Layout layout;

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

// All that the usual step reads of a tensor, where nothing but its gradient's address changed.
struct FastTensor {
    PyObject* object = nullptr;
    const PyGetSetDef* grad = nullptr;  // how its `.grad` is read, where nothing else comes first
    Fingerprint p, gradient;
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
            (void)real_dtype(e.p.view, "params");
            Tensor& t = tensors_[i];
            t.rule = rule_number(rule_names[i]);
            t.hyper = rows[i];
            t.id = ids[i];
            e.matrix = t.rule == int(RuleId::Adafactor) || t.rule == int(RuleId::Muon);
            rows_ = std::max(rows_, rows[i] + 1);
            lay_out(i);
        }
        fast_.resize(entries_.size());
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            fast_[i].object = entries_[i].p.object.ptr();
            fast_[i].grad = getter(Py_TYPE(fast_[i].object), grad_name_);
        }
        moved_ = true;
        check_overlaps();
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
        if (e.matrix ? states.size() > max_states : int(states.size()) != rule.states) {
            const int wanted = e.matrix ? max_states : rule.states;
            raise_value("states", (e.matrix ? "at most " : "") + std::to_string(wanted) + " arrays",
                        std::to_string(states.size()));
        }
        Entry made;
        const bool wide = e.p.view.dtype.bits == 64;
        for (const auto& state : states) {
            Bound b = bound(state, "state", Access::write, owners_);
            if (!e.matrix) check_beside(b, e, "state");
            const Dtype dtype = real_dtype(b.view, "state");
            // Rules on matrices read their sums directly.
            const bool sums = tensors_[i].rule == int(RuleId::Adafactor);
            if ((dtype == Dtype::f64) != wide || (sums && dtype != Dtype::f32 && !wide)) {
                raise_type("state", wide ? "dtype float64" : "dtype float32", b.view.dtype_name());
            }
            made.states.push_back(std::move(b));
        }
        const auto optional = [&](const py::object& object, const char* name) {
            if (object.is_none()) return Bound{};
            Bound b = bound(object, name, Access::write, owners_);
            check_beside(b, e, name);
            return b;
        };
        made.ema = optional(ema, "ema");
        made.copy = optional(copy, "copies");
        if (made.ema) (void)real_dtype(made.ema.view, "ema");
        if (made.copy) (void)real_dtype(made.copy.view, "copies");
        made.remainder = optional(remainder, "remainder");
        if (made.remainder) check_dtype(made.remainder.view, "remainder", dlpack::int16);
        if (made.remainder && real_dtype(e.p.view, "params") != Dtype::bf16) {
            raise_type("params", "dtype bfloat16 for a master of 32 bits", e.p.view.dtype_name());
        }
        for (const auto& number : clock) {
            Bound b = bound(number, "step", Access::write, owners_);
            const Dtype dtype = real_dtype(b.view, "step");
            if (b.view.size() != 1 || bytes_of(dtype) == 2 || backend_is_cuda()) {
                raise_value("step", "one float32 or float64 number on the host",
                            b.view.dtype_name() + " of shape " + text(b.view.shape));
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
        moved_ = beside_is_old_ = true;
        for (Bound& number : e.clock) {  // others may have run since it was looked at
            if (number.refresh("step", owners_)) {
                raise_value("step", "memory that stays where it is", "other memory");
            }
        }
        write_clock(i);
    }

    // Whether these lists, one after the other, hold our parameters.
    bool holds(const py::list& lists) const {
        std::size_t i = 0;
        for (const auto& list : lists) {
            const auto items = py::reinterpret_borrow<py::list>(list);
            for (const auto& p : items) {
                if (i == entries_.size() || p.ptr() != fast_[i].object) return false;
                ++i;
            }
        }
        return i == entries_.size();
    }

    // Runs a step on gradients: a sequence with None where there is none, or None for the
    // parameters' own `.grad`. `hyper` has a row of numbers for each row that the parameters name.
    // What is beside them and never was `lent` only its owner could have moved, but for copies.
    // Gives the parameters whose arrays are missing or lie elsewhere than they did; nothing was
    // done then, and they have to be bound.
    std::vector<std::size_t> run(const py::object& grads,
                                 const std::vector<std::vector<double>>& hyper, double unscale,
                                 std::optional<double> max_norm, bool check, bool zero,
                                 double ema_weight, std::optional<std::uint64_t> seed,
                                 const py::sequence& rates, const py::object& scale,
                                 const py::object& found_inf, std::optional<std::uintptr_t> stream,
                                 bool lent) {
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
        const std::vector<std::size_t> missing = collect(grads, zero, lent);
        if (!missing.empty()) return missing;
        {
            // While others run they may replace the memory of what they own: hold it, where that
            // costs little beside the step, or else let nobody run.
            const bool others_run = is_large();
            if (others_run) hold_memory(numbers);
            if (others_run || others_may_have_run_ || !numbers.empty()) refuse_moved(numbers);
            std::optional<py::gil_scoped_release> unlocked;
            if (others_run) unlocked.emplace();
            stepper_.step(stream ? foreign_stream(*stream) : current_stream(), tensors_, layout_,
                          rows, scalars, options);
        }
        if (!backend_is_cuda() && !stepper_.skipped()) {
            for (std::size_t i = 0; i < entries_.size(); ++i) {
                if (gradients_[i]) write_clock(i);
            }
        }
        return missing;
    }

    // Shape, strides of a dense array in the parameter's order of axes, and dtype of parameter i.
    py::tuple dense(std::size_t i) const {
        check_number(i);
        const View& p = entries_[i].p.view;
        const auto strides = dense_strides(p.shape, p.strides, entries_[i].matrix);
        return py::make_tuple(py::tuple(py::cast(p.shape)), py::tuple(py::cast(strides)),
                              p.dtype_name());
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
    std::vector<std::size_t> collect(const py::object& grads, bool zero, bool lent) {
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
        others_may_have_run_ = false;
        const std::size_t count = entries_.size();
        gradients_.assign(count, py::object());
        find_moved(lent);
        for (std::size_t i = 0; i < count; ++i) {
            PyObject* const p = fast_[i].object;
            const PyGetSetDef* const get = fast_[i].grad;
            py::object g;
            if (!own) {
                g = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(fast.ptr(), i));
            } else {
                others_may_have_run_ = others_may_have_run_ || !get;
                g = py::reinterpret_steal<py::object>(get ? get->get(p, get->closure)
                                                          : PyObject_GetAttr(p, grad_name_.ptr()));
            }
            if (!g) throw py::error_already_set();
            if (g.is_none()) {
                all_stepped_ = false;
                if (entries_[i].followed() && !refresh_parameter(i)) missing.push_back(i);
                tensors_[i].gradient.data = nullptr;  // laid out again, it is the last one's
                continue;
            }
            if (!take_if_unchanged(i, g.ptr())) take_checked(i, g, zero, missing);
            gradients_[i] = std::move(g);
        }
        if (!missing.empty()) return missing;
        check_overlaps();
        if (lent) read_clocks();
        for (std::size_t i = 0; i < count; ++i) {
            // Gradients at their old places were compared before.
            void* const data = gradients_[i] ? tensors_[i].gradient.data : nullptr;
            if (data == compared_at_[i]) continue;
            compared_at_[i] = nullptr;
            if (!data) continue;
            apart_ = false;
            const char* const at = static_cast<const char*>(data);
            const FastTensor& known = fast_[i];
            if (!known.gradient || !written_.clear_of(at + known.before, at + known.after)) {
                written_.check_read(gradient_now(i), "grads");
            }
            compared_at_[i] = data;
        }
        if (zero && !apart_) refuse_shared_gradients();
        return missing;
    }

    // A tensor of one element that lies on our device; None for none.
    Scalar scalar(const py::handle& object, const char* name, std::vector<Bound>& numbers) {
        if (object.is_none()) return {};
        const Bound b = bound(object, name, Access::read, owners_);
        const Dtype dtype = real_dtype(b.view, name);
        if (bytes_of(dtype) == 2) {
            raise_type(name, "dtype float32 or float64", b.view.dtype_name());
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

    static void check_beside(const Bound& b, const Entry& e, const char* name) {
        check_shape(b.view, name, e.p.view.shape);
        check_no_overlap_within(b.view, name);
    }

    static void check_layouts(const Entry& e) {
        for (const Bound& s : e.states) {
            if (!e.matrix) check_beside(s, e, "state");
        }
        for (const auto& [b, name] : {std::pair(&e.ema, "ema"), std::pair(&e.copy, "copies"),
                                      std::pair(&e.remainder, "remainder")}) {
            if (*b) check_beside(*b, e, name);
        }
    }

    static bool backend_is_cuda() { return device_type() != dlpack::cpu; }

    // Finds what is beside the parameters again: whose memory others may replace is compared at
    // every step. Where something lies elsewhere it has to be bound anew.
    void find_moved(bool lent) {
        if (beside_is_old_ || lent != lent_) {
            beside_.clear();
            for (std::size_t i = 0; i < entries_.size(); ++i) {
                entries_[i].for_each_beside([&](Bound& b, const char* name) {
                    if (b.fixed || !(lent || &b == &entries_[i].copy)) return;
                    beside_.push_back({Fingerprint(b.view), &b, name, i});
                });
            }
            beside_is_old_ = false;
            lent_ = lent;
        }
        for (const Beside& at : beside_) {
            bool stands = false;
            if (at.known) {
                stands = at.known.address_if_unchanged(at.bound->object.ptr()) == at.known.address;
            } else if (entries_[at.entry].ready) {
                others_may_have_run_ = true;
                const void* const before = at.bound->view.data;
                stands = !at.bound->refresh(at.name, owners_) && at.bound->view.data == before;
            }
            if (!stands) {
                entries_[at.entry].ready = false;
                fast_[at.entry].p = {};
            }
        }
    }

    // Takes a clock that its owner has set.
    void read_clocks() {
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            const auto& shown = entries_[i].clock;
            if (shown.empty() || !gradients_[i]) continue;
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

    void write_clock(std::size_t i) {
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
    bool take_if_unchanged(std::size_t i, PyObject* g) {
        const FastTensor& known = fast_[i];
        if (!known.p || !known.gradient || known.gradient_type != Py_TYPE(g)) {
            return false;
        }
        if (known.p.address_if_unchanged(known.object) != known.p.address) return false;
        void* const data = known.gradient.address_if_unchanged(g);
        if (data) tensors_[i].gradient.data = data;
        return data != nullptr;
    }

    void take_checked(std::size_t i, const py::object& g, bool zero,
                      std::vector<std::size_t>& missing) {
        if (!refresh_parameter(i)) {
            missing.push_back(i);
            return;
        }
        Entry& e = entries_[i];
        take_gradient(e, i, g, zero);
        FastTensor& known = fast_[i];
        known.p = Fingerprint(e.p.view);
        known.gradient = Fingerprint(e.gradient.view);
        known.gradient_type = e.gradient_type;
        const auto [begin, end] = e.gradient.view.range();
        const auto* const data = static_cast<const char*>(e.gradient.view.data);
        known.before = begin - data;
        known.after = end - data;
    }

    // Lays a parameter out again where it changed; false where something beside it is missing.
    bool refresh_parameter(std::size_t i) {
        Entry& e = entries_[i];
        others_may_have_run_ = true;
        fast_[i].p = fast_[i].gradient = {};
        const dlpack::DataType dtype = e.p.view.dtype;
        const bool changed = e.p.refresh("params", owners_);
        if (changed || !e.laid_out || address(e.p.view) != tensors_[i].p.data) {
            e.laid_out = false;
            if (e.p.view.dtype != dtype) {
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
        Bound& b = e.gradient;  // without its object, which is not ours to keep
        bool changed = true;
        try {
            if (e.gradient_type == Py_TYPE(g.ptr())) {
                changed = b.view.refresh(g, "grads");
            } else {
                refuse_wrappers(g, "grads");
                b.view = peek(g, "grads");
                e.gradient_type = Py_TYPE(g.ptr());
            }
            b.pass_owner(owners_);
        } catch (py::error_already_set&) {
            if (py::cast<bool>(py::getattr(g, "is_sparse", py::bool_(false)))) {
                raise_type("grads", "a dense array", "a sparse one");
            }
            throw;
        }
        if (changed || !b.valid) {
            b.valid = false;
            const Dtype dtype = real_dtype(b.view, "grads");
            const bool wide = e.p.view.dtype.bits == 64;
            if ((dtype == Dtype::f64) != wide) {
                raise_type("grads", "dtype " + e.p.view.dtype_name(), b.view.dtype_name());
            }
            check_shape(b.view, "grads", e.p.view.shape);
            b.valid = true;
            lay_out(i);
            compared_at_[i] = nullptr;
        }
        if (zero) check_writable(b.view, "grads");

        tensors_[i].gradient.data = address(b.view);
    }

    void refuse_shared_gradients() {
        others_may_have_run_ = true;
        Overlaps gradients;
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            if (!gradients_[i]) continue;
            const View& view = gradient_now(i);
            check_no_overlap_within(view, "grads");
            gradients.writes(view, "grads");
        }
        gradients.check();
        apart_ = true;
    }

    const View& gradient_now(std::size_t i) {
        View& view = entries_[i].gradient.view;
        view.data = tensors_[i].gradient.data;
        return view;
    }

    // Compares all that is written, once it has moved.
    void check_overlaps() {
        if (!moved_) return;
        others_may_have_run_ = true;
        written_.clear();
        for (const Entry& e : entries_) {
            check_no_overlap_within(e.p.view, "params");
            written_.writes(e.p.view, "params");
            for (const Bound& s : e.states) written_.writes(s.view, "state");
            for (const Bound& s : e.clock) written_.writes(s.view, "step");
            if (e.ema) written_.writes(e.ema.view, "ema");
            if (e.copy) written_.writes(e.copy.view, "copies");
            if (e.remainder) written_.writes(e.remainder.view, "remainder");
        }
        written_.check();
        compared_at_.assign(entries_.size(), nullptr);
        moved_ = false;
    }

    void lay_out(std::size_t i) {
        Entry& e = entries_[i];
        const auto place = [&](const Bound& b) -> Placement {
            if (!b) return {};
            const View& v = b.view;
            const Dtype dtype = v.dtype == dlpack::int16 ? Dtype::i16 : real_dtype(v, "state");
            return {address(v), dtype, &v.shape, &v.strides};
        };
        Placements arrays{place(e.p),    place(e.gradient),  place(e.ema),
                          place(e.copy), place(e.remainder), {},
                          e.matrix};
        for (const Bound& s : e.states) arrays.states.push_back(place(s));
        e.layout.lay_out(arrays, tensors_[i]);
        e.laid_out = true;
        ++layout_;
    }

    // Whether what has a gradient is so large, on average, that to hold it takes a fiftieth of its
    // step.
    bool is_large() const {
        index elements = 0, count = 0;
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            if (!gradients_[i]) continue;
            elements += tensors_[i].size;
            ++count;
        }
        return elements >= (index(1) << 14) * count;
    }

    // Holds all memory that a step reads or writes: what hands itself out, since the rest is held
    // since it was looked at.
    void hold_memory(const std::vector<Bound>& numbers) {
        const auto add = [&](const Bound& b, PyObject* object) {
            if (!b.view.exchange) return;
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
            if (gradients_[i]) add(entries_[i].gradient, gradients_[i].ptr());
            if (gradients_[i] || entries_[i].followed()) add(entries_[i].p, fast_[i].object);
        }
        for (const Beside& at : beside_) add(*at.bound, at.bound->object.ptr());
        for (const Bound& b : numbers) add(b, b.object.ptr());
    }

    // Another thread may have run since memory was looked at; none does from here on.
    void refuse_moved(const std::vector<Bound>& numbers) {
        const auto check = [&](const Fingerprint& known, const Bound& b, PyObject* object,
                               const void* data, const char* name) {
            if (!b.view.exchange) return;
            void* const now =
                known ? known.address_if_unchanged(object) : b.view.address_if_unchanged(object);
            if ((now ? now : &nothing_) != (data ? data : &nothing_)) {
                raise_value(name, "memory that stays where it is during a step", "other memory");
            }
        };
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            const Entry& e = entries_[i];
            const FastTensor& known = fast_[i];
            const Tensor& t = tensors_[i];
            if (gradients_[i]) {
                check(known.gradient, e.gradient, gradients_[i].ptr(), t.gradient.data, "grads");
            }
            if (gradients_[i] || e.followed())
                check(known.p, e.p, known.object, t.p.data, "params");
        }
        for (const Beside& at : beside_) {
            check(at.known, *at.bound, at.bound->object.ptr(), at.bound->view.data, at.name);
        }
        for (const Bound& b : numbers) check({}, b, b.object.ptr(), b.view.data, "lr");
    }

    void release() {
        gradients_.clear();
        owners_.clear();
    }

    std::vector<Entry> entries_;
    std::vector<Tensor> tensors_;
    index layout_ = 0;  // of the tensors, numbered through
    Stepper stepper_;
    Overlaps written_;
    std::vector<const void*> compared_at_;  // where each gradient was when it was last compared
    bool apart_ = false;  // they were also compared with each other since one came or moved
    int rows_ = 0;
    // An array beside a parameter, by all that is read of it again at every step.
    struct Beside {
        Fingerprint known;
        Bound* bound;
        const char* name;
        std::size_t entry;
    };
    std::vector<Beside> beside_;
    bool beside_is_old_ = true;  // something was bound since they were gathered,
    bool lent_ = true;           // and what was never lent is among them
    std::vector<FastTensor> fast_;
    std::vector<py::object> gradients_;  // until the step was run; and likewise
    Owners owners_;
    bool moved_ = true;  // something written, since it was last compared
    bool all_stepped_ = true;
    bool others_may_have_run_ = false;  // other threads, since memory was looked at
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
             py::arg("found_inf") = py::none(), py::arg("stream") = py::none(),
             py::arg("lent") = true)
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
