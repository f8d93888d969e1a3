#include "optim/update.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "optim/tables_gpu.cuh"
#include "optim/update_gpu.cuh"

SP_BEGIN

namespace optim_cuda {

namespace {

// A step that is skipped still clears the gradients.
__global__ void __launch_bounds__(threads)
    clear_kernel(const __grid_constant__ Device d, const __grid_constant__ Pieces pieces) {
    if (!d.status->skipped) return;
    for (index s = blockIdx.x; s < pieces.total; s += gridDim.x) {
        const int piece = owner(pieces, s), tensor = pieces.tensors[piece];
        const Item& item = d.items[tensor];
        Array gradient = item.gradient;
        gradient.data = d.gradients[tensor];
        if (gradient.data == nullptr) continue;
        const index begin = (s - pieces.first[piece]) * slab;
        const index end = begin + slab < item.size ? begin + slab : item.size;
        for (index i = begin + index(threadIdx.x); i < end; i += threads) {
            store_at(gradient, place_of(d.numbers, item, gradient.strides, i), 0.f);
        }
    }
}

// The first pass of a rule by norms: |p|^2 and the direction's by slab, one after all of the other.
template <class R, std::size_t... I>
__device__ __forceinline__ void prepare_slabs(const Update& u, std::index_sequence<I...>) {
    using T = typename R::scalar;
    constexpr int unrolled = 4;
    const Device& d = u.device;
    if (d.status->skipped) return;
    const auto factor = T(d.status->factor);
    for (index s = blockIdx.x; s < u.pieces.total; s += gridDim.x) {
        const int piece = owner(u.pieces, s), tensor = u.pieces.tensors[piece];
        if (d.gradients[tensor] == nullptr) continue;  // of the whole block
        const Item& item = d.items[tensor];
        const R rule = *reinterpret_cast<const R*>(&u.blocks[tensor]);
        Array gradient = item.gradient;
        gradient.data = d.gradients[tensor];
        const index begin = (s - u.pieces.first[piece]) * slab;
        const index end = begin + slab < item.size ? begin + slab : item.size;
        double p2 = 0.0, direction2 = 0.0;
        for (index base = begin + index(threadIdx.x); base < end; base += unrolled * threads) {
            T p[unrolled], g[unrolled];
            [[maybe_unused]] T states[R::prepared + 1][unrolled];
#pragma unroll
            for (int k = 0; k < unrolled; ++k) {
                const index i = base + k * threads;
                if (i >= end) break;
                p[k] = parameter<T>(d.numbers, item, i);
                g[k] = load_at<T>(gradient, place_of(d.numbers, item, gradient.strides, i));
                ((states[I][k] = load_at<T>(item.state[I],
                                            place_of(d.numbers, item, item.state[I].strides, i))),
                 ...);
            }
#pragma unroll
            for (int k = 0; k < unrolled; ++k) {
                const index i = base + k * threads;
                if (i >= end) break;
                const T direction = rule.prepare(p[k], g[k] * factor, states[I][k]...);
                (store_at(item.state[I], place_of(d.numbers, item, item.state[I].strides, i),
                          states[I][k]),
                 ...);
                p2 = add_square(p2, double(p[k]));
                direction2 = add_square(direction2, double(direction));
            }
        }
        p2 = folded(p2, threads);
        direction2 = folded(direction2, threads);
        if (threadIdx.x == 0) {
            d.sums[s] = p2;
            d.sums[u.pieces.total + s] = direction2;
        }
    }
}

template <class R>
__global__ void __launch_bounds__(threads) prepare_kernel(const __grid_constant__ Update u) {
    prepare_slabs<R>(u, std::make_index_sequence<R::prepared>());
}

template <class R>
__global__ void __launch_bounds__(threads) norms_kernel(const __grid_constant__ Update u) {
    const Device& d = u.device;
    if (d.status->skipped) return;
    for (int piece = int(blockIdx.x); piece < u.pieces.count; piece += int(gridDim.x)) {
        const int tensor = u.pieces.tensors[piece];
        if (d.gradients[tensor] == nullptr) continue;
        const index first = u.pieces.first[piece], count = slabs_of(d.items[tensor].size);
        const double p2 = sum_of(d.sums + first, count);
        const double direction2 = sum_of(d.sums + u.pieces.total + first, count);
        if (threadIdx.x == 0) reinterpret_cast<R*>(&d.blocks[tensor])->set_norms(p2, direction2);
    }
}

// The gradient's sum of squares over one slab, in thread 0.
template <class S>
__device__ __forceinline__ double squares_of(const Device& d, const Item& item, const void* data,
                                             int strides, index begin, index end) {
    const S* const x = global<const S>(data);
    double sum = 0.0;
    if (strides < 0) {
#pragma unroll 16
        for (index i = begin + index(threadIdx.x); i < end; i += threads) {
            sum = add_square(sum, double(widen(x[i])));
        }
    } else {
        for (index i = begin + index(threadIdx.x); i < end; i += threads) {
            sum = add_square(sum, double(widen(x[place_of(d.numbers, item, strides, i)])));
        }
    }
    return folded(sum, threads);
}

__global__ void __launch_bounds__(threads)
    squares_kernel(const __grid_constant__ Device d, const __grid_constant__ Pieces pieces) {
    for (index s = blockIdx.x; s < pieces.total; s += gridDim.x) {
        const int piece = owner(pieces, s), tensor = pieces.tensors[piece];
        const Item& item = d.items[tensor];
        const void* const data = d.gradients[tensor];
        const index begin = (s - pieces.first[piece]) * slab;
        const index end = begin + slab < item.size ? begin + slab : item.size;
        const int strides = item.gradient.strides;
        double sum = 0.0;
        if (data) {
            switch (item.gradient.dtype) {
                case Dtype::f32: sum = squares_of<float>(d, item, data, strides, begin, end); break;
                case Dtype::f64:
                    sum = squares_of<double>(d, item, data, strides, begin, end);
                    break;
                case Dtype::bf16:
                    sum = squares_of<bfloat16>(d, item, data, strides, begin, end);
                    break;
                default: sum = squares_of<float16>(d, item, data, strides, begin, end);
            }
        }
        if (threadIdx.x == 0) d.sums[s] = sum;
    }
}

template <class S>
__device__ double value(const S& s) {
    return s.wide ? *static_cast<const double*>(s.data) : *static_cast<const float*>(s.data);
}

// What the options leave to be decided on the device.
struct Question {
    double unscale, max_norm;
    Scalar scale, found_inf;
    bool norm, check;
    __device__ bool found() const { return found_inf.data && value(found_inf) != 0.0; }
};

__device__ void decide(const Question& q, double sum, Status& status) {
    status.skipped = q.found();
    if (status.skipped) return;
    double factor = q.unscale;
    if (q.scale.data) factor /= value(q.scale);
    if (q.norm) {
        const double norm = std::sqrt(sum) * std::fabs(factor);
        status.norm = norm;
        status.skipped = q.check && !(norm - norm == 0.0);
        // As clip_grad_norm_; a norm that is not a number goes through.
        const double coefficient = q.max_norm / (norm + 1e-6);
        if (!(coefficient >= 1.0)) factor *= coefficient;
    }
    status.factor = factor;
}

template <template <class> class R>
__device__ void build(bool wide, Block& out, const double* h, index step, double* carry) {
    if (wide) {
        new (out.bytes) R<double>(h, step, carry);
    } else {
        new (out.bytes) R<float>(h, step, carry);
    }
}

// A step's scalars. Every block decides for itself, which is faster than to wait for one that does;
// the first one writes it down.
constexpr int few = 64;  // tensors of a block, so that they spread over the device
__global__ void __launch_bounds__(threads)
    begin_kernel(const __grid_constant__ Device d, const index slabs, const Question q) {
    __shared__ int skipped;
    const double sum = q.norm ? sum_of(d.sums, slabs) : 0.0;
    if (threadIdx.x == 0) {
        Status own{};
        Status& status = blockIdx.x == 0 ? *d.status : own;
        decide(q, sum, status);
        skipped = status.skipped;
    }
    __syncthreads();
    const int tensor = int(blockIdx.x * few + threadIdx.x);
    if (skipped || threadIdx.x >= few || tensor >= d.count || !d.gradients[tensor]) return;
    const Item& item = d.items[tensor];
    double h[max_hyper];
    for (int k = 0; k < max_hyper; ++k) h[k] = d.hyper[item.hyper * max_hyper + k];
    if (d.rates[item.hyper].data) h[0] = value(d.rates[item.hyper]);
    Clock clock = d.clocks[tensor];
    ++clock.steps;
    switch (item.rule) {
#define SP_BUILD(R) \
    case int(RuleId::R): build<R>(item.wide, d.blocks[tensor], h, clock.steps, clock.carry); break;
        SP_RULES(SP_BUILD)
#undef SP_BUILD
    }
    if (item.rule == int(RuleId::Adafactor)) {
        build<AdafactorGradient>(item.wide, d.first_blocks[tensor], h, clock.steps, nullptr);
    } else if (item.rule == int(RuleId::Muon)) {
        build<MuonMomentum>(item.wide, d.first_blocks[tensor], h, clock.steps, nullptr);
    }
    d.clocks[tensor] = clock;
}

using Launch = void (*)(const Stream&, bool, const Update&);
#define SP_LAUNCH(R) {&launch<R<float>>, &launch<R<double>>},
constexpr Launch launches[][2] = {SP_RULES(SP_LAUNCH)};
#undef SP_LAUNCH

template <class R>
void prepare(const Stream& stream, const Update& u) {
    if constexpr (by_norms<R>) {
        const cudaStream_t queue = native(stream).stream;
        prepare_kernel<R><<<grid(stream, u.pieces.total, 1), threads, 0, queue>>>(u);
        check(cudaGetLastError(), "prepare");
        norms_kernel<R><<<grid(stream, u.pieces.count, 1), threads, 0, queue>>>(u);
        check(cudaGetLastError(), "norms");
    }
}
using Prepare = void (*)(const Stream&, const Update&);
#define SP_PREPARE(R) {&prepare<R<float>>, &prepare<R<double>>},
constexpr Prepare prepares[][2] = {SP_RULES(SP_PREPARE)};
#undef SP_PREPARE

Update update_of(const Device& device, const Pieces& pieces, const StepOptions& options) {
    return {device,       pieces,         device.blocks, Stage::whole, nullptr, options.ema_weight,
            options.zero, options.random, options.seed};
}

}  // namespace

template <class T>
void gather(const MatrixPart& part, RuleId first, T* x) {
    Update u = update_of(part.device, part.pieces, part.options);
    u.blocks = part.device.first_blocks;
    u.stage = Stage::gather;
    u.x = x;
    launches[int(first)][sizeof(T) == 8](part.stream, false, u);
}

template <class T>
void apply(const MatrixPart& part, const T* x) {
    Update u = update_of(part.device, part.pieces, part.options);
    u.stage = Stage::apply;
    u.x = const_cast<T*>(x);
    u.zero = false;
    launches[part.tensor.rule][sizeof(T) == 8](part.stream, false, u);
}

template void gather(const MatrixPart&, RuleId, float*);
template void gather(const MatrixPart&, RuleId, double*);
template void apply(const MatrixPart&, const float*);
template void apply(const MatrixPart&, const double*);

}  // namespace optim_cuda

using namespace optim_cuda;

// A step that is captured has tables of its own, which are written at once, beside the capture:
// what a graph is replayed with is what it was captured with, but for clocks, gradients' values and
// numbers that lie on the device.
struct Stepper::State {
    explicit State(std::size_t tensors) : clocks(tensors) {}
    ~State();

    void start();
    Tables& tell(cudaStream_t queue, bool captured, const std::vector<Tensor>& tensors,
                 index layout, const std::vector<double>& hyper, const std::vector<Scalar>& rates);
    void send_clocks(cudaStream_t queue);
    void wait() const;
    void fetch();

    Status* device_status() const { return reinterpret_cast<Status*>(memory.data()); }
    Clock* device_clocks() const {
        return reinterpret_cast<Clock*>(memory.data() + sizeof(Status));
    }

    std::vector<Clock> clocks;
    Status status{0.0, 1.0, 0};
    bool ahead = false;   // the host's clocks are newer than the device's,
    bool behind = false;  // or may be older, and so its status

    Memory memory;  // the device's status and clocks
    cudaStream_t side = nullptr;
    bool queued = false;          // some step was, and not captured,
    cudaStream_t last = nullptr;  // the last of them here,
    cudaEvent_t done = nullptr;   // and this is its end
    Tables tables;
    std::vector<std::unique_ptr<Tables>> of_graphs;
};

// Errors have nowhere to go here.
Stepper::State::~State() {
    if (memory.data() == nullptr || forked()) return;
    try {
        const DeviceGuard guard;
        const Relaxed relaxed;
        if (done) (void)cudaEventSynchronize(done);
        if (done) (void)cudaEventDestroy(done);
        if (side) (void)cudaStreamDestroy(side);
        memory = Memory();
        tables = Tables();
        of_graphs.clear();
    } catch (const DeviceError&) {
    }
}

void Stepper::State::start() {
    if (memory.data()) return;
    if (side == nullptr) {
        check(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    }
    if (done == nullptr) {
        check(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    }
    Memory made(sizeof(Status) + clocks.size() * sizeof(Clock));
    write(side, made.data(), &status, sizeof status);
    check(cudaStreamSynchronize(side), "cudaStreamSynchronize");
    memory = std::move(made);
    ahead = true;
}

void Stepper::State::send_clocks(cudaStream_t queue) {
    if (!ahead) return;
    write(queue, device_clocks(), clocks.data(), clocks.size() * sizeof(Clock));
    ahead = false;
}

Tables& Stepper::State::tell(cudaStream_t queue, bool captured, const std::vector<Tensor>& tensors,
                             index layout, const std::vector<double>& hyper,
                             const std::vector<Scalar>& rates) {
    if (!captured) {
        if (queued && last != queue) check(cudaStreamWaitEvent(queue, done), "cudaStreamWaitEvent");
        tables.tell(queue, tensors, layout, hyper, rates);
        send_clocks(queue);
        return tables;
    }
    if (queued) check(cudaEventSynchronize(done), "cudaEventSynchronize");
    of_graphs.push_back(std::make_unique<Tables>());
    Tables& own = *of_graphs.back();
    own.tell(side, tensors, layout, hyper, rates);
    send_clocks(side);
    check(cudaStreamSynchronize(side), "cudaStreamSynchronize");
    return own;
}

// A graph is replayed without our knowing, on any stream.
void Stepper::State::wait() const {
    if (!of_graphs.empty()) {
        check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    } else if (queued) {
        check(cudaEventSynchronize(done), "cudaEventSynchronize");
    }
}

void Stepper::State::fetch() {
    if (memory.data() == nullptr || (!behind && of_graphs.empty())) return;
    const DeviceGuard guard;
    wait();
    check(cudaMemcpyAsync(&status, device_status(), sizeof status, cudaMemcpyDeviceToHost, side),
          "cudaMemcpyAsync");
    if (!clocks.empty() && !ahead) {
        check(cudaMemcpyAsync(clocks.data(), device_clocks(), clocks.size() * sizeof(Clock),
                              cudaMemcpyDeviceToHost, side),
              "cudaMemcpyAsync");
    }
    check(cudaStreamSynchronize(side), "cudaStreamSynchronize");
    behind = false;
}

Stepper::Stepper(std::size_t tensors) : state_(new State(tensors)) {}
Stepper::~Stepper() = default;

Clock Stepper::clock(std::size_t tensor) const {
    state_->fetch();
    return state_->clocks[tensor];
}

void Stepper::set_clock(std::size_t tensor, const Clock& clock) {
    State& s = *state_;
    s.fetch();
    s.clocks[tensor] = clock;
    s.ahead = true;
    if (s.of_graphs.empty()) return;
    const DeviceGuard guard;
    s.send_clocks(s.side);
    check(cudaStreamSynchronize(s.side), "cudaStreamSynchronize");
}

double Stepper::norm() const {
    state_->fetch();
    return state_->status.norm;
}

bool Stepper::skipped() const {
    state_->fetch();
    return state_->status.skipped != 0;
}

void Stepper::step(const Stream& stream, const std::vector<Tensor>& tensors, index layout,
                   const std::vector<double>& hyper, const std::vector<Scalar>& rates,
                   const StepOptions& options) {
    const DeviceGuard guard;
    const Relaxed relaxed;
    State& s = *state_;
    const cudaStream_t queue = native(stream).stream;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(queue, &capture), "cudaStreamIsCapturing");
    const bool captured = capture != cudaStreamCaptureStatusNone;
    s.start();
    const Tables& tables = s.tell(queue, captured, tensors, layout, hyper, rates);
    s.behind = true;

    Device device = tables.device();
    device.clocks = s.device_clocks();
    device.status = s.device_status();
    const Question question{options.unscale,   options.max_norm, options.scale,
                            options.found_inf, options.norm,     options.check};
    const Pieces& all = tables.slabs();
    if (options.norm && all.total > 0) {
        squares_kernel<<<grid(stream, all.total, 1), threads, 0, queue>>>(device, all);
        check(cudaGetLastError(), "norm");
    }
    const auto blocks = unsigned(std::max<std::size_t>(1, (tensors.size() + few - 1) / few));
    begin_kernel<<<blocks, threads, 0, queue>>>(device, all.total, question);
    check(cudaGetLastError(), "step");
    for (const Group& group : tables.groups()) {
        const Update u = update_of(device, group.chunks, options);
        bool some = false, some_follow = false;
        for (int i : group.tensors) {
            const Tensor& t = tensors[i];
            some = some || t.gradient.data;
            some_follow = some_follow || (!t.gradient.data && (t.ema.data || t.copy.data));
        }
        if (some_follow) launches[int(RuleId::Unmoved)][group.wide](stream, false, u);
        if (!some) continue;
        if (on_matrices(group.rule)) {
            const int i = group.tensors[0];
            const Tensor& t = tensors[i];
            const MatrixPart part{stream, device,      options, t, &hyper[t.hyper * max_hyper],
                                  i,      group.chunks};
            if (group.rule == int(RuleId::Adafactor)) {
                adafactor(part);
            } else {
                muon(part);
            }
            continue;
        }
        if (needs_norms[group.rule]) {
            Update before = u;
            before.pieces = group.slabs;
            prepares[group.rule][group.wide](stream, before);
        }
        launches[group.rule][group.wide](stream, group.plain, u);
    }
    if (options.zero && (options.check || options.found_inf.data) && all.total > 0) {
        clear_kernel<<<grid(stream, all.total, 1), threads, 0, queue>>>(device, all);
        check(cudaGetLastError(), "clear");
    }
    if (captured) return;
    check(cudaEventRecord(s.done, queue), "cudaEventRecord");
    s.last = queue;
    s.queued = true;
}

SP_END
