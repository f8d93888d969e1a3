// The backward pass.
#include "norm/sweep_isa.hpp"

SP_BEGIN

namespace SADDLEPOINT_ISA {

void norm_sum_backward(const Sweep& sweep, const Runs& runs, const double* one, const void* each,
                       double* sums) {
    with_first_order_loop(sweep, [&](const Sweep& s, auto activation) {
        sum_one<BackwardSums<decltype(activation)>>(s, runs, one, each, sums);
    });
}

void norm_map_backward(const Sweep& sweep, const Runs& runs, const double* one, const void* each) {
    with_first_order_loop(sweep, [&](const Sweep& s, auto activation) {
        map_one<Backward<decltype(activation)>>(s, runs, one, each);
    });
}

}  // namespace SADDLEPOINT_ISA

SP_END
