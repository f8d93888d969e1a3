// One pass over memory of one function of norm/formulas.hpp: the contract between the driver
// (fused.cpp) and the loops, which are compiled once for each instruction set.
#pragma once

#include "core/dtype.hpp"
#include "core/isa.hpp"
#include "norm/formulas.hpp"

SP_BEGIN

namespace normalization {

enum class Activation : std::uint8_t { none, relu, leaky_relu, gelu, tanh };
constexpr bool piecewise_linear(Activation a) {
    return a != Activation::gelu && a != Activation::tanh;
}

// Elements as runs of neighbours. A channel is a run (its coefficients are single numbers), or the
// runs are rows that go through all channels (a coefficient an element of the run).
struct Runs {
    index count, stride, length;  // elements
    index begin;                  // where the first run begins
    index gate, gate_stride;      // where its bits begin, in bytes
    index size() const { return count * length; }
};

// Coefficients and sums of rows are tables: number k of element i at [k * row_stride + i]. A stride
// of whole pages would make the numbers of an element compete for the same cache sets.
constexpr index row_tile = 1024, row_stride = row_tile + 48;
constexpr int most_sums = 7, most_coefficients = 11;

enum class Work : std::uint8_t {
    moments,
    forward,
    backward_sums,
    backward,
    tangent_sums,
    tangent,
    second_sums,
    more_second_sums,
    second
};

// An array that is null reads as zeros, or is not written.
struct Sweep {
    Work work;
    Activation activation = Activation::none;
    Dtype dtype;
    Setting setting;
    const void* in[inputs] = {};
    void* out[3] = {};
    const std::uint8_t* gate = nullptr;
    std::uint8_t* new_gate = nullptr;
    bool stream = false;  // outputs past the caches
};

}  // namespace normalization

// `moments` gives the mean and the sum of squares about it, the others their sums.
#define SP_DECLARE(isa)                                                             \
    namespace isa {                                                                 \
    void norm_map_forward(const normalization::Sweep&, const normalization::Runs&,  \
                          const double* one, const void* each);                     \
    void norm_map_backward(const normalization::Sweep&, const normalization::Runs&, \
                           const double* one, const void* each);                    \
    void norm_map_second(const normalization::Sweep&, const normalization::Runs&,   \
                         const double* one, const void* each);                      \
    void norm_sum_forward(const normalization::Sweep&, const normalization::Runs&,  \
                          const double* one, const void* each, double* sums);       \
    void norm_sum_backward(const normalization::Sweep&, const normalization::Runs&, \
                           const double* one, const void* each, double* sums);      \
    void norm_sum_second(const normalization::Sweep&, const normalization::Runs&,   \
                         const double* one, const void* each, double* sums);        \
    }
SP_FOR_EACH_ISA(SP_DECLARE)
#undef SP_DECLARE

SP_END
