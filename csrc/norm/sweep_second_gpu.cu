// Tangents, of the forward pass, of the backward pass and of the tangent.
#include "norm/sweep_gpu.cuh"

SP_BEGIN

namespace normalization {

void sum_second(const Launch& launch, const Task& task) {
    switch (launch.sweep.function) {
        case Function::tangent_sums: return sum_one<TangentSums>(launch, launch.sweep, task);
        case Function::second_tangent_sums:
            return sum_one<SecondTangentSums>(launch, launch.sweep, task);
        default: break;
    }
    with_kind(launch.sweep, [&](const Sweep& sweep, auto activation) {
        using A = decltype(activation);
        if constexpr (!A::piecewise_linear) {
            if (sweep.function == Function::more_second_sums) {
                return sum_one<MoreSecondSums<A>>(launch, sweep, task);
            }
        }
        sum_one<SecondSums<A>>(launch, sweep, task);
    });
}

void map_second(const Launch& launch, const Task& task) {
    with_kind(launch.sweep, [&](const Sweep& sweep, auto activation) {
        using A = decltype(activation);
        switch (sweep.function) {
            case Function::tangent: return map_one<Tangent<A>>(launch, sweep, task);
            case Function::second_tangent: return map_one<SecondTangent<A>>(launch, sweep, task);
            default: return map_one<Second<A>>(launch, sweep, task);
        }
    });
}

}  // namespace normalization

SP_END
