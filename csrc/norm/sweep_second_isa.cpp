// Tangents, of the forward pass, of the backward pass and of the tangent.
#include "norm/sweep_isa.hpp"

SP_BEGIN

namespace SADDLEPOINT_ISA {

void norm_sum_second(const Sweep& sweep, const Runs& runs, const double* one, const void* each,
                     double* sums) {
    if (sweep.function == Function::tangent_sums) {
        return sum_one<TangentSums>(sweep, runs, one, each, sums);
    }
    if (sweep.function == Function::second_tangent_sums) {
        return sum_one<SecondTangentSums>(sweep, runs, one, each, sums);
    }
    with_loop(sweep, [&](const Sweep& s, auto activation) {
        using A = decltype(activation);
        if constexpr (!A::piecewise_linear) {
            if (s.function == Function::more_second_sums) {
                return sum_one<MoreSecondSums<A>>(s, runs, one, each, sums);
            }
        }
        return sum_one<SecondSums<A>>(s, runs, one, each, sums);
    });
}

void norm_map_second(const Sweep& sweep, const Runs& runs, const double* one, const void* each) {
    with_loop(sweep, [&](const Sweep& s, auto activation) {
        using A = decltype(activation);
        if (s.function == Function::tangent) return map_one<Tangent<A>>(s, runs, one, each);
        if (s.function == Function::second_tangent)
            return map_one<SecondTangent<A>>(s, runs, one, each);
        return map_one<Second<A>>(s, runs, one, each);
    });
}

}  // namespace SADDLEPOINT_ISA

SP_END
