// The backward pass.
#include "norm/sweep_gpu.cuh"

SP_BEGIN

namespace normalization {

void sum_backward(const Launch& launch, const Task& task) {
    with_kind(launch.sweep, [&](const Sweep& sweep, auto activation) {
        sum_one<BackwardSums<decltype(activation)>>(launch, sweep, task);
    });
}

void map_backward(const Launch& launch, const Task& task) {
    with_kind(launch.sweep, [&](const Sweep& sweep, auto activation) {
        map_one<Backward<decltype(activation)>>(launch, sweep, task);
    });
}

void hold_backward(const Launch& sums, const Sweep& map, const Task& task, index bytes,
                   index most) {
    with_kind(map, [&](const Sweep& sweep, auto activation) {
        using A = decltype(activation);
        Sweep first = sums.sweep;
        first.setting = sweep.setting;
        hold_one<BackwardSums<A>, Backward<A>>(sums, first, sweep, task, bytes, most);
    });
}

}  // namespace normalization

SP_END
