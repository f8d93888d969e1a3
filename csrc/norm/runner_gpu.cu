#include "norm/runner.hpp"

#include <algorithm>

#include "core/buffer.hpp"
#include "norm/walk_gpu.cuh"

SP_BEGIN

namespace normalization {

namespace {

// The least power of two that is not below n, up to `most`.
int power_from(index n, int most) {
    int p = 1;
    while (p < n && p < most) p *= 2;
    return p;
}

// Blocks that a pass is cut into where there is enough to do, and how often the threads of one go
// round. Functions of the shape alone, as everything is that sums depend on.
constexpr index wanted_blocks = 1024, least_rounds = 2, most_rounds = 64;

Planes planes_of(const Shape& shape, int block) {
    Planes p{};
    p.shape = shape;
    p.groups = shape.groups();
    p.bits = bits_of_run(shape.inner);
    p.width = power_from(up(shape.inner, lanes), warp);
    p.stretches = up(shape.inner, p.stretch());
    const index at_once = block / p.width, of_group = std::min(shape.group, shape.outer);
    const index all = p.stretches * of_group;
    const index rounds = up(all * p.groups * shape.channels, at_once * wanted_blocks);
    p.each = at_once * std::clamp(rounds, least_rounds, most_rounds);
    p.pieces = up(all, p.each);
    return p;
}

Tiles tiles_of(const Cut& cut) {
    const Shape& shape = cut.shape;
    Tiles t{};
    t.shape = shape;
    t.groups = cut.groups();
    t.wide = cut.wide;
    t.width = cut.width;
    t.group_bits = cut.bits_of_rows(cut.group);
    t.across = power_from(up(cut.width, lanes), cut.wide > 1 ? threads : warp);
    t.tiles = up(cut.width, index(t.across) * lanes);
    const index at_once = threads / t.across, rows = cut.group / cut.wide;
    const index rounds = up(rows * t.groups * t.tiles, at_once * wanted_blocks);
    t.each = at_once * std::clamp<index>(rounds, least_rounds, additions);
    t.slabs = up(rows, t.each) + (cut.wide > 1 ? 1 : 0);
    return t;
}

// Whether fours of elements can be loaded at once.
bool vectors(const Cut& cut, const std::vector<Sweep>& passes) {
    const Shape& s = cut.shape;
    const index run = cut.rows ? cut.width : s.inner;
    if (run % lanes != 0 || (cut.rows && s.groups() > 1 && s.group * s.channels % lanes != 0)) {
        return false;
    }
    const std::uintptr_t unit = std::min<index>(lanes * bytes_of(s.dtype), 16);
    bool all = true;
    const auto look = [&](const void* x) {
        all = all && reinterpret_cast<std::uintptr_t>(x) % unit == 0;
    };
    for (const Sweep& sweep : passes) {
        for (const void* x : sweep.in) look(x);
        for (const void* x : sweep.out) look(x);
    }
    return all;
}

// What becomes of the sums of a channel, and what the next pass needs: a warp a channel.
struct Step {
    Function function, next;
    int sums, coefficients;  // 0: none
    bool computed_in_double;
    index slabs;
    const double* partial;
    double* found;  // (2, groups, channels), moments that statistics are made of
    void* table;
};

__device__ __forceinline__ double add_warp(double x) {
#pragma unroll
    for (int half = warp / 2; half > 0; half /= 2) x += __shfl_xor_sync(whole_warp, x, half);
    return x;
}

// Sums over the slabs; `from` is the first one's.
__device__ double total(const double* from, index slabs, index stride, int lane) {
    double x = 0.0;
    for (index s = lane; s < slabs; s += warp) x += from[s * stride];
    return add_warp(x);
}

// Those about the mean, from count, mean and sum of squares of each slab; about the first mean, so
// that equal ones are what they are.
__device__ void total_moments(const double* from, index slabs, index stride, index channels,
                              int lane, double* mean, double* square) {
    const double first = from[channels];
    double count = 0.0, offset = 0.0, squares = 0.0;
    for (index s = lane; s < slabs; s += warp) {
        const double* const at = from + s * stride;
        count += at[0];
        if (at[0] != 0.0) offset += at[0] * (at[channels] - first);
    }
    const double middle = first + add_warp(offset) / add_warp(count);
    for (index s = lane; s < slabs; s += warp) {
        const double* const at = from + s * stride;
        const double d = at[channels] - middle;
        if (at[0] != 0.0) squares += at[2 * channels] + at[0] * (d * d);
    }
    *mean = middle;
    *square = add_warp(squares);
}

__global__ void __launch_bounds__(threads)
    between(const __grid_constant__ Task task, const __grid_constant__ Step step) {
    const Shape& shape = task.norm.shape;
    const index groups = shape.groups(), channels = shape.channels;
    const int lane = int(threadIdx.x) % warp;
    const index first = (index(blockIdx.x) * threads + threadIdx.x) / warp;
    for (index c = first; c < channels; c += index(gridDim.x) * (threads / warp)) {
        const bool moments = step.function == Function::moments;
        const int kept = moments ? 3 : step.sums;
        const index stride = groups * kept * channels;
        for (index g = 0; g < groups && step.sums; ++g) {
            const double* const from = step.partial + g * kept * channels + c;
            if (moments) {
                double mean, square;
                total_moments(from, step.slabs, stride, channels, lane, &mean, &square);
                if (lane == 0) {
                    step.found[g * channels + c] = mean;
                    step.found[(groups + g) * channels + c] = square;
                }
            } else {
                for (int k = 0; k < step.sums; ++k) {
                    const double x = total(from + k * channels, step.slabs, stride, lane);
                    if (lane == 0) task.sum(first_sum(step.function) + k, g, c) = x;
                }
            }
        }
        if (lane == 0) {
            if (moments) {
                for (index g = 0; g < groups; ++g) {
                    set_channel_statistics(task, g, c, step.found[g * channels + c],
                                           step.found[(groups + g) * channels + c]);
                }
            } else {
                finish_channel(task, step.function, c);
            }
        }
        __syncwarp();
        for (index g = lane; g < groups && step.coefficients; g += warp) {
            double number[most_coefficients];
            channel_coefficients(task, step.next, g, c, number);
            for (int k = 0; k < step.coefficients; ++k) {
                const index at = (k * groups + g) * channels + c;
                if (step.computed_in_double) {
                    static_cast<double*>(step.table)[at] = number[k];
                } else {
                    static_cast<float*>(step.table)[at] = float(number[k]);
                }
            }
        }
    }
}

// The most that a block may have beside what it declares.
index shared_memory() {
    static const index bytes = [] {
        int most = 0;
        check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
              "cudaDeviceGetAttribute");
        return index(most) - 4096;
    }();
    return bytes;
}

// Both passes in one launch, if a channel is on chip at once and there are enough of them to keep
// the device busy.
bool hold(const Stream& stream, const Task& task, const std::vector<Sweep>& passes,
          const Cut& cut) {
    const Shape& s = cut.shape;
    if (cut.rows || passes.size() != 2 || s.groups() > 1 || s.size() == 0) return false;
    const bool forward =
        passes[0].function == Function::moments && passes[1].function == Function::forward;
    const bool backward =
        passes[0].function == Function::backward_sums && passes[1].function == Function::backward;
    if (!forward && !backward) return false;
    const index padded = up(s.inner, lanes) * lanes;
    const index bytes = up(s.outer * padded * bytes_of(s.dtype), 16) * 16;
    if ((forward ? 1 : 2) * bytes > shared_memory()) return false;
    if (2 * s.channels < native(stream).multiprocessors) return false;
    Launch sums{stream, passes[0], {}, nullptr, nullptr};
    sums.walk.planes = planes_of(s, hold_threads);
    Planes& p = sums.walk.planes;
    p.each = p.stretches * s.outer;
    p.pieces = 1;
    sums.walk.vectors = vectors(cut, passes);
    (forward ? hold_forward : hold_backward)(sums, passes[1], task, bytes);
    return true;
}

void pass(const Launch& launch) {
    switch (launch.sweep.function) {
        case Function::moments: return sum_forward(launch);
        case Function::forward: return map_forward(launch);
        case Function::backward_sums: return sum_backward(launch);
        case Function::backward: return map_backward(launch);
        case Function::tangent_sums:
        case Function::second_sums:
        case Function::more_second_sums:
        case Function::second_tangent_sums: return sum_second(launch);
        default: return map_second(launch);
    }
}

}  // namespace

void take(const Stream& stream, const Task& task, const std::vector<Sweep>& passes) {
    const Shape& s = task.norm.shape;
    if (s.channels == 0 || passes.empty()) return;
    const DeviceGuard guard;
    const Cut cut(s);
    if (hold(stream, task, passes, cut)) return;

    Launch launch{stream, {}, {}, nullptr, nullptr};
    Walk& walk = launch.walk;
    walk.rows = cut.rows;
    if (cut.rows) {
        walk.tiles = tiles_of(cut);
    } else {
        walk.planes = planes_of(s, threads);
    }
    walk.vectors = vectors(cut, passes);
    index most = 0;
    int coefficients = 0;
    for (const Sweep& sweep : passes) {
        most = std::max<index>(most, partials_of(sweep.function, sweep.activation));
        if (sweep.function != Function::moments) {
            coefficients = std::max(coefficients, coefficients_of(sweep.function));
        }
    }
    const index each = s.groups() * s.channels;  // numbers of a kind
    const index slabs = s.size() ? walk.slabs() : 0;
    Buffer partial(stream, std::size_t(slabs * most * each * index(sizeof(double))));
    Buffer rest(stream, std::size_t((2 + coefficients) * each * index(sizeof(double))));
    launch.partial = static_cast<double*>(partial.data());
    auto* const found = static_cast<double*>(rest.data());
    launch.table = found + 2 * each;

    Step step{};
    step.function = Function::forward;  // nothing is due yet
    step.computed_in_double = s.dtype == Dtype::f64;
    step.slabs = slabs;
    step.partial = launch.partial;
    step.found = found;
    step.table = found + 2 * each;
    const auto go_between = [&](const Sweep* next) {
        const bool needed =
            next && next->function != Function::moments && !without_pass(next->function);
        step.next = needed ? next->function : Function::forward;
        step.coefficients = needed && s.size() ? coefficients_of(next->function) : 0;
        const bool due = step.sums || without_pass(step.function);
        if (!due && step.coefficients == 0) return;
        const unsigned blocks = unsigned(std::min<index>(up(s.channels, threads / warp), 1 << 20));
        normalization::launch(stream, between, blocks, threads, 0, task, step);
    };
    go_between(&passes[0]);
    for (std::size_t i = 0; i < passes.size(); ++i) {
        launch.sweep = passes[i];
        const Function function = passes[i].function;
        step.sums = sums_of(function, passes[i].activation);
        if (!without_pass(function) && s.size()) {
            pass(launch);
            walk.backward = !walk.backward;
        }
        if (step.sums || without_pass(function)) {
            step.function = function;
            go_between(i + 1 < passes.size() ? &passes[i + 1] : nullptr);
        }
    }
}

}  // namespace normalization

SP_END
