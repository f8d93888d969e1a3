// Moments and the forward pass.
#include "norm/sweep_gpu.cuh"

SP_BEGIN

namespace normalization {

void sum_forward(const Launch& launch, const Task& task) {
    sum_one<Moments>(launch, launch.sweep, task);
}

void map_forward(const Launch& launch, const Task& task) {
    with_kind(launch.sweep, [&](const Sweep& sweep, auto activation) {
        map_one<Forward<decltype(activation)>>(launch, sweep, task);
    });
}

void hold_forward(const Launch& sums, const Sweep& map, const Task& task, index bytes, index most) {
    with_kind(map, [&](const Sweep& sweep, auto activation) {
        hold_one<Moments, Forward<decltype(activation)>>(sums, sums.sweep, sweep, task, bytes,
                                                         most);
    });
}

}  // namespace normalization

SP_END
