// The driver: a step of every tensor, shared out over a team.
#include "optim/update_cpu.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/buffer.hpp"
#include "optim/adafactor_cpu.hpp"
#include "optim/muon_cpu.hpp"

SP_BEGIN

namespace {

index slabs_of(index size) { return (size + slab - 1) / slab; }

#define SP_FLAG(R) by_norms<R<float>>,
constexpr bool needs_norms[] = {SP_RULES(SP_FLAG)};
#undef SP_FLAG

// Calls f(part, begin, end, number) for the pieces of `each` elements that a member owns: equal,
// contiguous shares of all of them, whatever tensors they lie in; or of those whose rules want
// norms.
template <class F>
void for_share(const Context& context, const TensorSteps& parts, bool all, index each, F&& f) {
    const auto pieces_of = [&](const TensorStep& part) {
        return all || needs_norms[part.tensor->rule] ? (part.tensor->size + each - 1) / each : 0;
    };
    index total = 0;
    for (const TensorStep& part : parts) total += pieces_of(part);
    const Range mine = context.share(total);
    index at = 0;
    for (const TensorStep& part : parts) {
        const index pieces = pieces_of(part);
        const index begin = std::max(mine.begin - at, index(0));
        const index end = std::min(mine.end - at, pieces);
        if (begin < end) f(part, begin * each, std::min(end * each, part.tensor->size), at + begin);
        at += pieces;
        if (at >= mine.end) break;
    }
}

double work_of(const TensorSteps& parts) {
    double work = 0.0;
    for (const TensorStep& part : parts) work += double(part.tensor->size);
    return cost::update * work;
}

// The scalars of a rule, in the type that the tensor is worked on.
template <template <class> class R>
void build(bool wide, void* out, const double* h, index step, double* carry) {
    if (wide) {
        new (out) R<double>(h, step, carry);
    } else {
        new (out) R<float>(h, step, carry);
    }
}
using Build = void (*)(bool, void*, const double*, index, double*);
#define SP_BUILD(R) &build<R>,
constexpr Build builds[] = {SP_RULES(SP_BUILD)};
#undef SP_BUILD

double value(const Scalar& s) {
    return s.wide ? *static_cast<const double*>(s.data) : *static_cast<const float*>(s.data);
}

struct Block {
    alignas(16) unsigned char bytes[rule_bytes];
};

double sum_of(const double* x, index n, index stride) { SP_PICK_ISA(sum_of, x, n, stride); }

double sum_of_squares(const Stream& stream, const std::vector<TensorStep>& parts) {
    index count = 0;
    for (const TensorStep& part : parts) count += slabs_of(part.tensor->size);
    std::vector<double> partial(count);
    run(stream, work_of(parts), [&](const Context& context) {
        for_share(context, parts, true, slab,
                  [&](const TensorStep& part, index begin, index end, index number) {
                      for (index at = begin; at < end; at += slab, ++number) {
                          const auto squares = [&] {
                              SP_PICK_ISA(squares, *part.tensor, part.tensor->gradient, at,
                                          std::min(at + slab, end));
                          };
                          partial[number] = squares();
                      }
                  });
    });
    return sum_of(partial.data(), count, 1);
}

template <class R>
void set_norms(void* rule, double p2, double direction2) {
    if constexpr (by_norms<R>) static_cast<R*>(rule)->set_norms(p2, direction2);
}
using SetNorms = void (*)(void*, double, double);
#define SP_SET(R) {&set_norms<R<float>>, &set_norms<R<double>>},
constexpr SetNorms norm_setters[][2] = {SP_RULES(SP_SET)};
#undef SP_SET

void set_norms(const TensorStep& part, const double* sums) {
    const index slabs = slabs_of(part.tensor->size);
    const double p2 = sum_of(sums, slabs, 2), direction2 = sum_of(sums + 1, slabs, 2);
    const bool wide = part.tensor->p.dtype == Dtype::f64;
    norm_setters[part.tensor->rule][wide](part.rule, p2, direction2);
}

}  // namespace

void run_elementwise(const Stream& stream, const TensorSteps& parts, double factor,
                     const StepOptions& options, double* sums) {
    constexpr index line = 64;  // pieces begin at multiples of this, to keep vectors whole
    run(stream, work_of(parts), [&](const Context& context) {
        if (sums) {
            const auto prepare = [&](const TensorStep& part, index begin, index end, index number) {
                for (index at = begin; at < end; at += slab, ++number) {
                    const auto piece = [&] {
                        SP_PICK_ISA(prepare_piece, part, factor, at, std::min(at + slab, end),
                                    &sums[2 * number]);
                    };
                    piece();
                }
            };
            for_share(context, parts, false, slab, prepare);
            context.sync();
            if (context.rank == 0) {
                const double* at = sums;
                for (const TensorStep& part : parts) {
                    if (!needs_norms[part.tensor->rule]) continue;
                    set_norms(part, at);
                    at += 2 * slabs_of(part.tensor->size);
                }
            }
            context.sync();
        }
        for_share(context, parts, true, line,
                  [&](const TensorStep& part, index begin, index end, index) {
                      const auto piece = [&] {
                          SP_PICK_ISA(update_piece, part, factor, options, begin, end);
                      };
                      piece();
                  });
    });
}

namespace {

// Tensors whose parameter stays, while what is beside it goes on.
class Followers {
   public:
    explicit Followers(std::vector<Tensor> tensors) : tensors_(std::move(tensors)) {
        parts_.reserve(tensors_.size());
        for (Tensor& t : tensors_) {
            t.rule = int(RuleId::Unmoved);
            parts_.push_back({&t, &nothing_, 0});
        }
    }
    void go(const Stream& stream, StepOptions options) const {
        if (parts_.empty()) return;
        options.random = false;
        run_elementwise(stream, parts_, 1.0, options);
    }

   private:
    std::vector<Tensor> tensors_;
    std::vector<TensorStep> parts_;
    unsigned char nothing_ = 0;
};

}  // namespace

template <class T>
void gather_direction(const Stream& stream, const TensorStep& part, RuleId first,
                      const double* hyper, double factor, const StepOptions& options, T* x) {
    Tensor t = *part.tensor;
    t.p = {x, nullptr, sizeof(T) == 8 ? Dtype::f64 : Dtype::f32};
    t.ema = t.copy = t.remainder = {};
    t.rule = int(first);
    Block block;
    builds[t.rule](sizeof(T) == 8, block.bytes, hyper, part.step, nullptr);
    run_elementwise(stream, TensorSteps({&t, block.bytes, part.step}), factor, options);
}

template <class T>
void apply_direction(const Stream& stream, const TensorStep& part, const StepOptions& options,
                     const T* x) {
    Tensor t = *part.tensor;
    t.gradient = {const_cast<T*>(x), nullptr, sizeof(T) == 8 ? Dtype::f64 : Dtype::f32};
    StepOptions after = options;
    after.zero = false;
    run_elementwise(stream, TensorSteps({&t, part.rule, part.step}), 1.0, after);
}

#define SP_INSTANTIATE(T)                                                                   \
    template void gather_direction(const Stream&, const TensorStep&, RuleId, const double*, \
                                   double, const StepOptions&, T*);                         \
    template void apply_direction(const Stream&, const TensorStep&, const StepOptions&, const T*);
SP_INSTANTIATE(float)
SP_INSTANTIATE(double)
#undef SP_INSTANTIATE

double squared_norm(const Stream& stream, const Tensor& tensor, const Strided& x) {
    constexpr index at_once = 1024;
    const index count = slabs_of(tensor.size);
    double partial[at_once], sum = 0.0;
    for (index done = 0; done < count; done += at_once) {
        const index slabs = std::min(at_once, count - done);
        run(stream, cost::element * double(slabs * slab), [&](const Context& context) {
            const Range mine = context.share(slabs);
            for (index i = mine.begin; i < mine.end; ++i) {
                const index begin = (done + i) * slab;
                const auto squares = [&] {
                    SP_PICK_ISA(squares, tensor, x, begin, std::min(begin + slab, tensor.size));
                };
                partial[i] = squares();
            }
        });
        for (index i = 0; i < slabs; ++i) sum += partial[i];
    }
    return sum;
}

struct Stepper::State {
    std::vector<Clock> clocks;
    double norm = 0.0;
    bool skipped = false;
};

Stepper::Stepper(std::size_t tensors) : state_(new State{std::vector<Clock>(tensors)}) {}
Stepper::~Stepper() = default;

Clock Stepper::clock(std::size_t tensor) const { return state_->clocks[tensor]; }
void Stepper::set_clock(std::size_t tensor, const Clock& clock) { state_->clocks[tensor] = clock; }
double Stepper::norm() const { return state_->norm; }
bool Stepper::skipped() const { return state_->skipped; }

void Stepper::step(const Stream& stream, const std::vector<Tensor>& tensors, index /*layout*/,
                   const std::vector<double>& numbers, const std::vector<Scalar>& rates,
                   const StepOptions& options) {
    std::vector<double> hyper = numbers;
    for (std::size_t r = 0; r < rates.size(); ++r) {
        if (rates[r].data) hyper[r * max_hyper] = value(rates[r]);
    }
    std::vector<TensorStep> parts;
    parts.reserve(tensors.size());
    std::vector<Tensor> without;
    for (const Tensor& t : tensors) {
        if (t.gradient.data) {
            parts.push_back({&t, nullptr, 0});
        } else if (t.ema.data || t.copy.data) {
            without.push_back(t);
            without.back().gradient = t.p;
        }
    }
    const auto skip = [&] {
        state_->skipped = true;
        if (!options.zero) return;
        std::vector<Tensor> left;
        for (const TensorStep& part : parts) {
            left.push_back(*part.tensor);
            left.back().ema = left.back().copy = {};
        }
        Followers(std::move(left)).go(stream, options);
    };
    state_->skipped = false;
    double factor = options.unscale;
    if (options.scale.data) factor /= value(options.scale);
    if (options.found_inf.data && value(options.found_inf) != 0.0) return skip();
    if (options.norm) {
        const double norm = std::sqrt(sum_of_squares(stream, parts)) * std::fabs(factor);
        state_->norm = norm;
        if (options.check && !std::isfinite(norm)) return skip();
        // As clip_grad_norm_; a norm that is not a number goes through.
        const double coefficient = options.max_norm / (norm + 1e-6);
        if (!(coefficient >= 1.0)) factor *= coefficient;
    }
    // All memory is taken before anything is written, so that no step is done by half.
    const Followers followers(std::move(without));
    std::vector<Clock> ended(parts.size());
    std::vector<Block> blocks;
    blocks.reserve(parts.size());
    std::vector<TensorStep> elementwise;
    elementwise.reserve(parts.size());
    std::size_t bytes = 0;
    index slabs = 0;
    for (const TensorStep& part : parts) {
        const Tensor& t = *part.tensor;
        if (t.rule == int(RuleId::Adafactor)) bytes = std::max(bytes, adafactor_bytes(t));
        if (t.rule == int(RuleId::Muon)) bytes = std::max(bytes, muon_bytes(t));
        if (needs_norms[t.rule]) slabs += slabs_of(t.size);
    }
    const Buffer scratch(stream, bytes);
    std::vector<double> sums(2 * slabs);

    // Tensors in step with the one before them share its scalars, except where norms go into them.
    const Tensor* before = nullptr;
    const Clock* begun = nullptr;
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const Tensor& t = *parts[i].tensor;
        const Clock& clock = state_->clocks[&t - tensors.data()];
        const bool wide = t.p.dtype == Dtype::f64;
        const bool shared = before && !needs_norms[t.rule] && before->rule == t.rule &&
                            before->hyper == t.hyper && (before->p.dtype == Dtype::f64) == wide &&
                            begun->steps == clock.steps &&
                            std::equal(begun->carry, begun->carry + max_carried, clock.carry);
        if (shared) {
            ended[i] = ended[i - 1];
        } else {
            ended[i] = clock;
            ++ended[i].steps;
            blocks.emplace_back();
            builds[t.rule](wide, blocks.back().bytes, &hyper[t.hyper * max_hyper], ended[i].steps,
                           ended[i].carry);
        }
        before = &t;
        begun = &clock;
        parts[i].step = ended[i].steps;
        parts[i].rule = blocks.back().bytes;
    }
    // Rules on matrices want buffers of a tensor's size, and go one by one.
    for (const TensorStep& part : parts) {
        if (part.tensor->size == 0) continue;
        const double* h = &hyper[part.tensor->hyper * max_hyper];
        if (part.tensor->rule == int(RuleId::Adafactor)) {
            adafactor(stream, part, h, factor, options, scratch.data());
        } else if (part.tensor->rule == int(RuleId::Muon)) {
            muon(stream, part, h, factor, options, scratch.data());
        } else {
            elementwise.push_back(part);
        }
    }
    run_elementwise(stream, elementwise, factor, options, slabs ? sums.data() : nullptr);
    StepOptions rest = options;
    rest.zero = false;  // what stands for their gradients is themselves
    followers.go(stream, rest);
    for (std::size_t i = 0; i < parts.size(); ++i) {
        state_->clocks[parts[i].tensor - tensors.data()] = ended[i];
    }
}

SP_END
