// Inside the CPU driver: its loops, and the stages that rules on matrices share with it, as
// update_gpu.cuh has them.
#pragma once

#include "core/isa_cpu.hpp"
#include "optim/update.hpp"

SP_BEGIN

// One tensor's part of a step.
struct TensorStep {
    const Tensor* tensor;
    void* rule;  // its scalars, where the device reads them
    index step;
};

struct TensorSteps {
    const TensorStep* first;
    std::size_t count;
    TensorSteps(const std::vector<TensorStep>& parts) : first(parts.data()), count(parts.size()) {}
    explicit TensorSteps(const TensorStep& part) : first(&part), count(1) {}
    const TensorStep* begin() const { return first; }
    const TensorStep* end() const { return first + count; }
};

// Runs elementwise rules; `factor` multiplies the gradients. `sums` has two numbers for each slab
// of the tensors whose rules want norms.
void run_elementwise(const Stream& stream, const TensorSteps& parts, double factor,
                     const StepOptions& options, double* sums = nullptr);

// The stages around a rule on matrices. The first writes to `x`, dense in the tensor's order, what
// the elementwise rule `first` makes of the gradient, and clears it if asked to; the last moves the
// parameter along `x` by the part's own rule, with what follows a parameter.
template <class T>
void gather_direction(const Stream& stream, const TensorStep& part, RuleId first,
                      const double* hyper, double factor, const StepOptions& options, T* x);
template <class T>
void apply_direction(const Stream& stream, const TensorStep& part, const StepOptions& options,
                     const T* x);

// The sum of squares of one of a tensor's arrays.
double squared_norm(const Stream& stream, const Tensor& tensor, const Strided& x);

// Sums of squares go over slabs of this size: fixed, so the bits are.
constexpr index slab = 16384;

#define SP_DECLARE(isa)                                                                         \
    namespace isa {                                                                             \
    void update_piece(const TensorStep&, double factor, const StepOptions&, index begin,        \
                      index end);                                                               \
    void prepare_piece(const TensorStep&, double factor, index begin, index end, double* sums); \
    double squares(const Tensor&, const Strided&, index begin, index end);                      \
    double sum_of(const double* x, index n, index stride);                                      \
    }
SP_FOR_EACH_ISA(SP_DECLARE)
#undef SP_DECLARE

SP_END
