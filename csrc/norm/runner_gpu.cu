#include "norm/runner.hpp"

#include <algorithm>

#include "core/buffer.hpp"
#include "norm/channel_gpu.cuh"

SP_BEGIN

namespace normalization {

namespace {

// The logarithm of the least power of two that is not below n, up to that of `most`.
int log_from(index n, int most) {
    int log = 0;
    while (1 << log < n && 1 << log < most) ++log;
    return log;
}

// Blocks that a pass is cut into where there is enough to do, all of which an H100 holds at once,
// and how often the threads of one go round. Functions of the shape alone, as everything is that
// sums depend on.
constexpr index wanted_blocks = 2 * 132, wanted_of_rows = 132, least_rounds = 2, most_rounds = 64;

Planes planes_of(const Shape& shape) {
    Planes p{};
    p.shape = shape;
    p.groups = shape.groups();
    p.bits = bits_of_run(shape.inner);
    p.log_width = log_from(up(shape.inner, lanes), warp);
    p.stretches = int(up(shape.inner, p.stretch()));
    const index stride = shape.channels * shape.inner;
    p.runs_on = p.at_once() / p.stretches;
    p.stretches_on = p.at_once() % p.stretches;
    p.ahead = p.runs_on * stride + p.stretches_on * p.stretch();
    p.jump = stride - p.stretches * p.stretch();
    const index at_once = p.at_once(), of_group = std::min(shape.group, shape.outer);
    const index all = p.stretches * of_group;
    const index rounds = up(all * p.groups * shape.channels, at_once * wanted_blocks);
    p.each = int(at_once * std::clamp(rounds, least_rounds, most_rounds));
    p.pieces = up(all, p.each);
    return p;
}

// Rows of whole packs stay as they are, since their gates follow each other as they do in longer
// ones. A tile is narrow, but whole lines of memory: the fewer of its sums, the sooner they are
// added up.
Tiles tiles_of(const Cut& cut) {
    constexpr int narrow = 8;
    const Shape& shape = cut.shape;
    Tiles t{};
    t.shape = shape;
    t.groups = cut.groups();
    t.wide = shape.channels % 16 == 0 ? 1 : cut.wide;
    t.width = t.wide * shape.channels;
    t.group_bits = cut.bits_of_rows(cut.group);
    t.across = 1 << log_from(up(t.width, lanes), t.wide > 1 ? threads : narrow);
    t.rest_across = 1 << log_from(up(shape.channels, lanes), threads);
    t.tiles = up(t.width, index(t.across) * lanes);
    const index at_once = threads / t.across, rows = cut.group / t.wide;
    const index rounds = up(rows * t.groups * t.tiles, at_once * wanted_of_rows);
    t.each = int(at_once * std::clamp<index>(rounds, least_rounds, additions));
    t.slabs = up(rows, t.each) + (t.wide > 1 ? 1 : 0);
    return t;
}

// Whether fours of elements can be loaded at once.
bool vectors(const Cut& cut, const std::vector<Sweep>& passes) {
    const Shape& s = cut.shape;
    const index run = cut.rows ? tiles_of(cut).width : s.inner;
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

// What is due where no pass is: nothing was summed up.
__global__ void __launch_bounds__(threads)
    without(const __grid_constant__ Task task, Function function, int sums) {
    const Shape& shape = task.norm.shape;
    for (index c = index(blockIdx.x) * threads + threadIdx.x; c < shape.channels;
         c += index(gridDim.x) * threads) {
        for (index g = 0; g < shape.groups(); ++g) {
            for (int k = 0; k < sums; ++k) task.sum(first_sum(function) + k, g, c) = 0.0;
        }
        finish_channel(task, function, c);
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
    Launch sums{stream, passes[0]};
    Planes& p = sums.walk.planes = planes_of(s);
    p.each = int(p.stretches * s.outer);
    p.pieces = 1;
    sums.walk.vectors = vectors(cut, passes);
    (forward ? hold_forward : hold_backward)(sums, passes[1], task, bytes, shared_memory());
    return true;
}

// Memory of one kernel after the other: the stream's own. Or the call's, where that is too little,
// and in a capture, whose replays may run beside other calls.
class Scratch {
   public:
    Scratch(const Stream& stream, index sums, index tickets) {
        const Native& n = native(stream);
        cudaStreamCaptureStatus status{};
        check(cudaStreamIsCapturing(n.stream, &status), "cudaStreamIsCapturing");
        partial = n.partial;
        this->tickets = n.tickets;
        if (status == cudaStreamCaptureStatusNone && sums <= partial_size &&
            tickets <= tickets_size) {
            return;
        }
        const std::size_t bytes = sums * sizeof(double), more = tickets * sizeof(unsigned);
        own_ = Buffer(stream, bytes + more);
        partial = static_cast<double*>(own_.data());
        this->tickets = reinterpret_cast<unsigned*>(partial + sums);
        fill_zero(stream, this->tickets, more);
    }

    double* partial;
    unsigned* tickets;

   private:
    Buffer own_;
};

void pass(const Launch& launch, const Task& task) {
    switch (launch.sweep.function) {
        case Function::moments: return sum_forward(launch, task);
        case Function::forward: return map_forward(launch, task);
        case Function::backward_sums: return sum_backward(launch, task);
        case Function::backward: return map_backward(launch, task);
        case Function::tangent_sums:
        case Function::second_sums:
        case Function::more_second_sums:
        case Function::second_tangent_sums: return sum_second(launch, task);
        default: return map_second(launch, task);
    }
}

}  // namespace

void take(const Stream& stream, const Task& task, const std::vector<Sweep>& passes) {
    const Shape& s = task.norm.shape;
    if (s.channels == 0 || passes.empty()) return;
    const DeviceGuard guard;
    const Cut cut(s);
    if (hold(stream, task, passes, cut)) return;

    Launch launch{stream};
    Walk& walk = launch.walk;
    walk.rows = cut.rows;
    if (cut.rows) {
        walk.tiles = tiles_of(cut);
    } else {
        walk.planes = planes_of(s);
    }
    walk.vectors = vectors(cut, passes);
    index most = 0;
    for (const Sweep& sweep : passes) {
        most = std::max<index>(most, partials_of(sweep.function, sweep.activation));
    }
    const index sums = s.size() ? walk.slabs() * most * s.groups() * s.channels : 0;
    const Scratch scratch(stream, sums, walk.parts());
    launch.partial = scratch.partial;
    launch.tickets = scratch.tickets;
    for (const Sweep& sweep : passes) {
        const int sums = sums_of(sweep.function, sweep.activation);
        if (!without_pass(sweep.function) && s.size()) {
            launch.sweep = sweep;
            pass(launch, task);
            walk.backward = !walk.backward;
        } else if (sums || without_pass(sweep.function)) {
            const auto blocks = unsigned(std::min<index>(up(s.channels, threads), 1 << 20));
            normalization::launch(stream, without, blocks, 0, task, sweep.function, sums);
        }
    }
}

}  // namespace normalization

SP_END
