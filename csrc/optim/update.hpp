// A step of every tensor: gradients are unscaled and clipped, the rule moves the parameter and its
// states, averages and copies follow, gradients are cleared; in one pass over memory, after one
// over the gradients where their norm is asked for.
#pragma once

#include <memory>
#include <vector>

#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "optim/rules.hpp"

SP_BEGIN

// An array over a tensor's axes.
struct Strided {
    void* data = nullptr;            // null: absent
    const index* strides = nullptr;  // of the axes, in elements; null: element i lies at data[i]
    Dtype dtype = Dtype::f32;
};

// The elements of a tensor are numbered in the order in which the parameter lies in memory (in C
// order for rules on matrices). A parameter in float64 is worked on in double, others in float.
struct Tensor {
    index size = 0;
    int axes = 0;
    const index* extents = nullptr;  // outermost first
    const index* logical = nullptr;  // strides of the C order on these axes; null: the same order
    Strided p, gradient, ema, copy, remainder, state[max_states];
    int rule = 0;                            // place in SP_RULES
    int hyper = 0;                           // row of the numbers that the rule takes
    index id = 0;                            // for random numbers
    index batch = 1, rows = 1, columns = 1;  // of the matrices, for rules that want them
};

// How often a tensor was stepped, and what its rule carries on.
struct Clock {
    index steps = 0;
    double carry[max_carried] = {};
};

// A number that lies where the device reads it, in float or double; null: there is none.
struct Scalar {
    const void* data = nullptr;
    bool wide = false;
};

// What a step does besides the rule.
struct StepOptions {
    double unscale = 1.0;        // gradients are multiplied by it,
    Scalar scale;                // and divided by this one;
    Scalar found_inf;            // the step is skipped where this one is not zero
    bool norm = false;           // the norm of all gradients is wanted,
    double max_norm = INFINITY;  // to be clipped to this,
    bool check = false;          // or for the step to be skipped when it is not finite
    bool zero = false;           // gradients are cleared
    double ema_weight = 0.0;
    bool random = false;  // low precision is rounded at random
    std::uint64_t seed = 0;
};

class Stepper {
   public:
    explicit Stepper(std::size_t tensors);
    ~Stepper();

    // Tensors without a gradient stay as they are. `layout` is another number where anything of
    // them but their gradients' addresses is not as it was. `hyper` has rows of max_hyper numbers,
    // the rate first; `rates` has a number for each row that replaces it where there is one.
    void step(const Stream& stream, const std::vector<Tensor>& tensors, index layout,
              const std::vector<double>& hyper, const std::vector<Scalar>& rates,
              const StepOptions& options);

    Clock clock(std::size_t tensor) const;
    void set_clock(std::size_t tensor, const Clock& clock);
    // Of the last step: the norm after unscaling and before clipping, if it was asked for.
    double norm() const;
    bool skipped() const;

   private:
    struct State;
    std::unique_ptr<State> state_;
};

SP_END
