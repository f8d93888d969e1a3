#include <pthread.h>

#include <atomic>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/gpu.hpp"

SP_BEGIN

namespace {

std::atomic<bool> in_use{false}, in_child{false};
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] {
    if (in_use) in_child = true;
});

// A pool of our own: the default one is shared with the whole process. It keeps some memory between
// calls, which a synchronization would otherwise give back to the driver.
cudaMemPool_t make_pool() {
    int supported = 0;
    check(cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, device),
          "cudaDeviceGetAttribute");
    if (!supported) return nullptr;
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    cudaMemPool_t pool = nullptr;
    check(cudaMemPoolCreate(&pool, &properties), "cudaMemPoolCreate");
    std::uint64_t kept = std::uint64_t(256) << 20;
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept),
          "cudaMemPoolSetAttribute");
    return pool;
}

// For a stream of ours, or one that another library owns.
Native* make_native(const cudaStream_t* foreign = nullptr) {
    begin_use();
    const DeviceGuard guard;
    static const cudaMemPool_t pool = make_pool();
    int multiprocessors = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    void *partial = nullptr, *tickets = nullptr;
    check(cudaMalloc(&partial, partial_size * sizeof(double)), "cudaMalloc");
    check(cudaMalloc(&tickets, tickets_size * sizeof(unsigned)), "cudaMalloc");
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    check(cudaMemsetAsync(tickets, 0, tickets_size * sizeof(unsigned), stream), "cudaMemsetAsync");
    if (foreign) {  // it may be in a capture, where zeros would be written at every replay
        check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
        check(cudaStreamDestroy(stream), "cudaStreamDestroy");
        stream = *foreign;
    }
    return new Native{stream, pool, static_cast<double*>(partial), static_cast<unsigned*>(tickets),
                      multiprocessors};
}

// What threads that have ended leave to later ones. Leaked, since threads end after statics.
struct Idle {
    std::mutex mutex;
    std::vector<Native*> natives;
};
Idle& idle() {
    static auto* const idle = new Idle;
    return *idle;
}

struct Own {
    Native* native = nullptr;
    ~Own() {
        if (native == nullptr) return;
        const std::lock_guard<std::mutex> lock(idle().mutex);
        idle().natives.push_back(native);
    }
};
thread_local Own own;

Native* take() {
    {
        const std::lock_guard<std::mutex> lock(idle().mutex);
        if (!idle().natives.empty()) {
            Native* const native = idle().natives.back();
            idle().natives.pop_back();
            return native;
        }
    }
    return make_native();
}

}  // namespace

bool forked() { return in_child; }
void begin_use() { in_use = true; }

bool has_thread_stream() { return own.native != nullptr; }
Stream thread_stream() {
    if (own.native == nullptr) own.native = take();
    return {own.native};
}

// What belongs to a stream of another library: made once, since such streams are few and live long.
Stream foreign_stream(std::uintptr_t handle) {
    static std::mutex mutex;
    static auto* const known = new std::unordered_map<std::uintptr_t, Native*>;
    const std::lock_guard<std::mutex> lock(mutex);
    Native*& native = (*known)[handle];
    if (native == nullptr) {
        const Relaxed relaxed;  // the stream may be in a capture
        const auto stream = reinterpret_cast<cudaStream_t>(handle);
        native = make_native(&stream);
    }
    return {native};
}

void order(cudaStream_t earlier, cudaStream_t later) {
    const DeviceGuard guard;
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    const cudaError_t recorded = cudaEventRecord(event, earlier);
    const cudaError_t waits =
        recorded == cudaSuccess ? cudaStreamWaitEvent(later, event, 0) : recorded;
    const cudaError_t destroyed = cudaEventDestroy(event);
    check(waits, "cudaStreamWaitEvent");
    check(destroyed, "cudaEventDestroy");
}

void Stream::wait_for(const Stream& other) const {
    if (native == other.native) return;
    order(static_cast<Native*>(other.native)->stream, static_cast<Native*>(native)->stream);
}

void Stream::synchronize() const {
    if (native == nullptr) return;
    const DeviceGuard guard;
    check(cudaStreamSynchronize(static_cast<Native*>(native)->stream), "cudaStreamSynchronize");
}

// One member, whose calls follow each other on the stream.
void Context::sync() const {}
Slabs slabs(index rows) { return {rows, rows, 1}; }
index column_blocks(index) { return 1; }

void run(const Stream& stream, double, const Work& work) {
    const DeviceGuard guard;
    work(Context{0, 1, stream});
}

SP_END
