// One pass over memory of one function of norm/formulas.hpp: the contract between a backend's
// driver (runner_cpu.cpp, runner_gpu.cu) and its loops.
#pragma once

#include "core/dtype.hpp"
#include "norm/formulas.hpp"

SP_BEGIN

namespace normalization {

enum class Activation : std::uint8_t { none, relu, leaky_relu, gelu, tanh };
constexpr const char* activation_words[] = {nullptr, ReLU::name, LeakyReLU::name, GELU::name,
                                            Tanh::name};
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
    // Their elements from one on; its bits are in that byte.
    Runs part(index from, index n) const {
        return {count, stride, n, begin + from, gate + from / 8, gate_stride};
    }
};

// Coefficients and sums of rows are tables: number k of element i at [k * row_stride + i]. A stride
// of whole pages would make the numbers of an element compete for the same cache sets.
constexpr index row_tile = 1024, row_stride = row_tile + 48;
constexpr int most_sums = 7, most_coefficients = 13;

enum class Function : std::uint8_t {
    recall,         // no pass: the statistics are the running ones
    own_gradients,  // no pass: of the parameters, from this process's share of the sums
    moments,
    forward,
    backward_sums,
    backward,
    tangent_sums,
    tangent,
    second_sums,
    more_second_sums,
    second,
    second_tangent_sums,
    second_tangent
};
constexpr bool without_pass(Function function) {
    return function == Function::recall || function == Function::own_gradients;
}
// How many coefficients a pass takes, and how many sums it gives; none where it maps.
constexpr int coefficients_of(Function function) {
    switch (function) {
        case Function::recall:
        case Function::own_gradients: return 0;
        case Function::moments: return Moments::coefficients;
        case Function::forward: return Forward<Piecewise>::coefficients;
        case Function::backward_sums: return BackwardSums<Piecewise>::coefficients;
        case Function::backward: return Backward<Piecewise>::coefficients;
        case Function::tangent_sums: return TangentSums::coefficients;
        case Function::tangent: return Tangent<Piecewise>::coefficients;
        case Function::second_sums: return SecondSums<Piecewise>::coefficients;
        case Function::more_second_sums: return MoreSecondSums<Smooth<GELU>>::coefficients;
        case Function::second: return Second<Piecewise>::coefficients;
        case Function::second_tangent_sums: return SecondTangentSums::coefficients;
        default: return SecondTangent<Piecewise>::coefficients;
    }
}
constexpr int sums_of(Function function, Activation a) {
    switch (function) {
        case Function::moments: return Moments::sums;
        case Function::backward_sums: return BackwardSums<Piecewise>::sums;
        case Function::tangent_sums: return TangentSums::sums;
        case Function::second_sums:
            return piecewise_linear(a) ? SecondSums<Piecewise>::sums
                                       : SecondSums<Smooth<GELU>>::sums;
        case Function::more_second_sums: return MoreSecondSums<Smooth<GELU>>::sums;
        case Function::second_tangent_sums: return SecondTangentSums::sums;
        default: return 0;
    }
}

// An array that is null reads as zeros, or is not written.
struct Sweep {
    Function function;
    Activation activation = Activation::none;
    Dtype dtype;
    Setting setting;
    const void* in[inputs] = {};
    void* out[3] = {};
    const std::uint8_t* gate = nullptr;
    std::uint8_t* new_gate = nullptr;
    bool stream = false;  // outputs past the caches
};

// f(sweep, activation), with one of the kinds that are compiled where there is no need for more.
template <class F>
void with_kind(const Sweep& sweep, F&& f) {
    Sweep s = sweep;
    if (s.activation == Activation::none) s.setting.slope = 1.0;
    if (s.activation == Activation::relu) s.setting.slope = 0.0;
    s.setting.tanh = s.activation == Activation::tanh;
    switch (s.activation) {
        case Activation::gelu: return f(s, Smooth<GELU>{});
        case Activation::tanh: return f(s, Smooth<Tanh>{});
        default: return f(s, Piecewise{});
    }
}

}  // namespace normalization

SP_END
