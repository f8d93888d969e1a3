// Moments and the forward pass.
#include "norm/sweep_gpu.cuh"

SP_BEGIN

namespace normalization {

void sum_forward(const Launch& launch) { sum_one<Moments>(launch, launch.sweep); }

void map_forward(const Launch& launch) {
    with_kind(launch.sweep, [&](const Sweep& sweep, auto activation) {
        map_one<Forward<decltype(activation)>>(launch, sweep);
    });
}

void hold_forward(const Launch& sums, const Sweep& map, const Task& task, index bytes) {
    with_kind(map, [&](const Sweep& sweep, auto activation) {
        hold_one<Moments, Forward<decltype(activation)>>(sums, sums.sweep, sweep, task, bytes);
    });
}

}  // namespace normalization

SP_END
