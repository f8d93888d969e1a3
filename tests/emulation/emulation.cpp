// The emulated device. Blocks run one after the other, and the threads of a block take turns on one
// thread of the host's: each goes on until it waits for others. In which order they do is drawn
// anew for every round, from a seed, since the device promises none.
//
// Arrays end where pages do that nobody may touch, and hold NaNs until they are written. What a
// kernel does wrong ends its launch, and is told as the runtime's error and by emulation_fault.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "bindings/dlpack.hpp"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {

constexpr std::size_t page = 4096, stack_bytes = 256 << 10, most_shared = 227 << 10;
constexpr int most_threads = 1024, warp = 32;
constexpr unsigned char unwritten = 0xff;

std::recursive_mutex mutex;  // the device: one thing at a time
using Lock = std::lock_guard<std::recursive_mutex>;

// ---- faults

std::vector<std::string> faults;
std::string last_fault = "no fault";
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t wrong(cudaError_t status) {
    return status == cudaSuccess ? status : last_error = status;
}

void keep_fault(const std::string& text) {
    last_fault = text;
    faults.push_back(text);
    last_error = cudaErrorIllegalAddress;
}

// ---- memory

struct Array {
    char* pages;
    std::size_t whole, bytes;  // with the pages around it that nobody may touch
    char* data;
};
std::map<std::uintptr_t, Array> arrays;  // by their data

std::size_t up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

cudaError_t allocate(void** out, std::size_t bytes) {
    *out = nullptr;
    if (bytes == 0) return cudaSuccess;
    const std::size_t inner = up(bytes, page), whole = inner + 2 * page;
    void* const made = bytes >> 40 ? MAP_FAILED
                                   : mmap(nullptr, whole, PROT_NONE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED) return wrong(cudaErrorMemoryAllocation);
    char* const pages = static_cast<char*>(made);
    mprotect(pages + page, inner, PROT_READ | PROT_WRITE);
    std::memset(pages + page, unwritten, inner);
    char* const data = pages + page + inner - up(bytes, 16);
    arrays[reinterpret_cast<std::uintptr_t>(data)] = {pages, whole, bytes, data};
    *out = data;
    return cudaSuccess;
}

bool all_unwritten(const char* from, const char* to) {
    return std::all_of(from, to, [](char c) { return static_cast<unsigned char>(c) == unwritten; });
}

cudaError_t release(void* data) {
    if (data == nullptr) return cudaSuccess;
    const auto found = arrays.find(reinterpret_cast<std::uintptr_t>(data));
    if (found == arrays.end()) {
        keep_fault("what is freed is no array");
        return wrong(cudaErrorInvalidValue);
    }
    const Array a = found->second;
    arrays.erase(found);
    if (!all_unwritten(a.pages + page, a.data) ||
        !all_unwritten(a.data + a.bytes, a.pages + a.whole - page)) {
        keep_fault("something was written beside an array of " + std::to_string(a.bytes) +
                   " bytes");
    }
    munmap(a.pages, a.whole);
    return cudaSuccess;
}

// The array whose pages hold an address, or null.
const Array* array_at(const void* address) {
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    auto next = arrays.upper_bound(at);
    for (int back = 0; back < 2; ++back) {  // before it, or past its beginning
        if (next != arrays.end()) {
            const Array& a = next->second;
            const auto begin = reinterpret_cast<std::uintptr_t>(a.pages);
            if (at >= begin && at < begin + a.whole) return &a;
        }
        if (next == arrays.begin()) return nullptr;
        --next;
    }
    return nullptr;
}

bool holds(const Array* a, const void* from, std::size_t bytes) {
    const auto* const at = static_cast<const char*>(from);
    return a && at >= a->data && at + bytes <= a->data + a->bytes;
}

std::string place_of(const void* address) {
    char text[128];
    const Array* const a = array_at(address);
    if (a == nullptr) {
        std::snprintf(text, sizeof text, "address %p, where there is no array", address);
    } else {
        std::snprintf(text, sizeof text, "byte %td of an array of %zu bytes",
                      static_cast<const char*>(address) - a->data, a->bytes);
    }
    return text;
}

// ---- threads

enum class State { ready, at_block, at_warp, done };

struct Copy {
    void* to;
    const void* from;
    std::size_t bytes, zeros;
};

struct Fiber {
    jmp_buf place;
    bool begun = false;  // it has a context to go on with
    State state = State::done;
    uint3 index;
    std::vector<std::vector<Copy>> copies;  // committed, and at the end what is not
    // Where it waits, and with what.
    const char *what, *file;
    int line;
    unsigned mask;
    std::uint64_t bits;
};

std::vector<Fiber> fibers(most_threads);
std::vector<ucontext_t> contexts(most_threads);
std::uint64_t of_warp[most_threads / warp][warp];
jmp_buf home;
Fiber* running = nullptr;  // a thread of a kernel
bool at_work = false;      // what runs may touch the device's memory only
std::string work_name;     // of a kernel or a call
const std::function<void()>* job = nullptr;

std::vector<const void*> shared_begun;
char* dynamic = nullptr;
std::unordered_map<const void*, std::size_t> allowed;

std::uint64_t drawn = 0;
unsigned draw(unsigned n) {
    drawn = drawn * 6364136223846793005u + 1442695040888963407u;
    return n ? unsigned((drawn >> 33) % n) : 0;
}

int number(const Fiber& f) { return int(&f - fibers.data()); }

// Calls f(i) for all i below n, from a drawn one on and upwards or downwards.
template <class F>
void in_some_order(unsigned n, F&& f) {
    const unsigned step = draw(2) ? 1 : n - 1;
    unsigned i = draw(n);
    for (unsigned k = 0; k < n; ++k) {
        f(i);
        i += step;
        if (i >= n) i -= n;
    }
}

std::string named(const uint3& i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) +
           ")";
}

std::string where() {
    if (running == nullptr) return work_name;
    return work_name + ", block " + named(blockIdx) + ", thread " + named(running->index);
}

[[noreturn]] void leave(const std::string& what) {
    keep_fault(where() + ": " + what);
    _longjmp(home, 2);
}

void on_signal(int signal, siginfo_t* info, void* context);
constexpr int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
struct sigaction before[4];

// The instruction, for addr2line.
std::string instruction(const void* context) {
    const auto& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
    const auto at = static_cast<std::uintptr_t>(machine.gregs[REG_RIP]);
#elif defined(__aarch64__)
    const auto at = static_cast<std::uintptr_t>(machine.pc);
#else
    const std::uintptr_t at = 0;
#endif
    Dl_info info{};
    if (!dladdr(reinterpret_cast<void*>(at), &info) || !info.dli_fname) return "";
    char text[32];
    std::snprintf(text, sizeof text, "+0x%zx)",
                  std::size_t(at - reinterpret_cast<std::uintptr_t>(info.dli_fbase)));
    return " (" + std::string(info.dli_fname) + text;
}

// What was there before, Python's faulthandler say, sees what is not ours.
void on_signal(int signal, siginfo_t* info, void* context) {
    if (!at_work) {
        for (int k = 0; k < 4; ++k) {
            if (signals[k] == signal) sigaction(signal, &before[k], nullptr);
        }
        return;
    }
    std::string what = "an address that no such number can have, or an index out of bounds";
    if (signal == SIGSEGV || signal == SIGBUS) what = "no access to " + place_of(info->si_addr);
    if (signal == SIGFPE) what = "division by zero";
    leave(what + instruction(context));
}

void watch_signals() {
    thread_local std::vector<char> stack;
    stack_t now{};
    sigaltstack(nullptr, &now);
    if (now.ss_flags & SS_DISABLE) {
        stack.resize(64 << 10);
        now.ss_sp = stack.data();
        now.ss_size = stack.size();
        now.ss_flags = 0;
        sigaltstack(&now, nullptr);
    }
    for (int k = 0; k < 4; ++k) {
        struct sigaction ours{}, old{};
        ours.sa_sigaction = on_signal;
        ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(signals[k], &ours, &old);
        if (old.sa_sigaction != on_signal) before[k] = old;
    }
}

// Calls f, unless it faults.
template <class F>
void guarded(const std::string& name, F&& f) {
    watch_signals();
    work_name = name;
    if (_setjmp(home) == 0) {
        at_work = true;
        f();
    }
    at_work = false;
}

[[gnu::noinline]] void fiber_main(int i) {
    for (;;) {
        (*job)();
        fibers[i].state = State::done;
        if (_setjmp(fibers[i].place) == 0) _longjmp(home, 1);
    }
}

void prepare(int i) {
    ucontext_t& c = contexts[i];
    if (c.uc_stack.ss_sp == nullptr) {
        char* const stack = static_cast<char*>(
            mmap(nullptr, stack_bytes + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (stack == MAP_FAILED) std::abort();
        mprotect(stack + page, stack_bytes, PROT_READ | PROT_WRITE);
        getcontext(&c);
        c.uc_stack.ss_sp = stack + page;
        // Tops at equal offsets within a page would compete for the same cache sets.
        c.uc_stack.ss_size = stack_bytes - 64 * std::size_t(i % 64);
    }
    c.uc_link = nullptr;
    makecontext(&c, reinterpret_cast<void (*)()>(fiber_main), 1, i);
}

// Goes on with a thread until it waits or ends; false: it faulted.
[[gnu::noinline]] bool resume(Fiber& f) {
    const int came_back = _setjmp(home);
    if (came_back) {
        running = nullptr;
        return came_back == 1;
    }
    running = &f;
    threadIdx = f.index;
    if (f.begun) _longjmp(f.place, 1);
    f.begun = true;
    setcontext(&contexts[number(f)]);
    std::abort();
}

[[gnu::noinline]] void stop() {
    Fiber& f = *running;
    if (_setjmp(f.place) == 0) _longjmp(home, 1);
}

void wait(State state, const char* what, unsigned mask, std::uint64_t bits, const char* file,
          int line) {
    Fiber& f = *running;
    f.state = state;
    f.what = what;
    f.mask = mask;
    f.bits = bits;
    f.file = file;
    f.line = line;
    stop();
}

bool together(const Fiber& a, const Fiber& b) {
    return a.state == b.state && a.mask == b.mask && a.line == b.line &&
           (a.what == b.what || std::strcmp(a.what, b.what) == 0) &&
           (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string waits(const Fiber& f) {
    const std::string file = f.file;
    return std::string(f.what) + " at " + file.substr(file.rfind('/') + 1) + ":" +
           std::to_string(f.line);
}

// Lets the lanes of a warp go on that have met; whether there are some.
bool let_warp_go(int w, int count) {
    bool some = false;
    Fiber* const lanes = &fibers[w * warp];
    const int n = std::min(warp, count - w * warp);
    for (int l = 0; l < n; ++l) {
        if (lanes[l].state != State::at_warp) continue;
        const unsigned mask = lanes[l].mask;
        bool all = n == warp || mask >> n == 0;
        for (int k = 0; k < n && all; ++k) {
            all = !(mask >> k & 1) || together(lanes[k], lanes[l]);
        }
        if (!all) continue;
        for (int k = 0; k < n; ++k) {
            if (!(mask >> k & 1)) continue;
            of_warp[w][k] = lanes[k].bits;
            lanes[k].state = State::ready;
        }
        some = true;
    }
    return some;
}

std::string deadlock(int count) {
    std::map<std::string, std::vector<int>> at;
    for (int i = 0; i < count; ++i) {
        at[fibers[i].state == State::done ? "have ended" : waits(fibers[i])].push_back(i);
    }
    std::string text = "threads wait for each other:";
    for (const auto& [place, which] : at) {
        text += " " + std::to_string(which.size()) + " (from " + std::to_string(which[0]) + ") " +
                (place == "have ended" ? place : "in " + place) + ";";
    }
    text.pop_back();
    return text;
}

// False: some thread faulted.
bool run_block(int count) {
    const int warps = (count + warp - 1) / warp;
    for (int i = 0; i < count; ++i) {
        Fiber& f = fibers[i];
        f.state = State::ready;
        f.copies.clear();
        if (!f.begun) prepare(i);
        const unsigned x = blockDim.x, y = blockDim.y;
        f.index = {unsigned(i) % x, unsigned(i) / x % y, unsigned(i) / x / y};
    }
    for (;;) {
        bool fine = true;
        in_some_order(unsigned(warps), [&](unsigned w) {
            do {
                in_some_order(unsigned(std::min(warp, count - int(w) * warp)), [&](unsigned l) {
                    Fiber& f = fibers[w * warp + l];
                    if (fine && f.state == State::ready) fine = resume(f);
                });
            } while (fine && let_warp_go(int(w), count));
        });
        if (!fine) return false;
        // Threads that have ended count as arrived.
        const Fiber* first = nullptr;
        bool all = true;
        for (int i = 0; i < count; ++i) {
            if (fibers[i].state == State::done) continue;
            if (first == nullptr) first = &fibers[i];
            all = all && fibers[i].state == State::at_block && together(fibers[i], *first);
        }
        if (first == nullptr) return true;
        if (!all) {
            keep_fault(work_name + ", block " + named(blockIdx) + ": " + deadlock(count));
            return false;
        }
        for (int i = 0; i < count; ++i) {
            if (fibers[i].state != State::done) fibers[i].state = State::ready;
        }
    }
}

void run_kernel(const std::string& name, const emulation::Shape& shape,
                const std::function<void()>& call) {
    const Lock lock(mutex);
    static const char* const seed = std::getenv("SADDLEPOINT_EMULATION_SEED");
    static std::uint64_t launches = seed ? std::strtoull(seed, nullptr, 10) << 32 : 0;
    drawn = ++launches * 0x9e3779b97f4a7c15u;
    gridDim = shape.grid;
    blockDim = shape.block;
    job = &call;
    work_name = name;
    watch_signals();
    const int count = int(blockDim.x * blockDim.y * blockDim.z);
    void* memory = nullptr;
    allocate(&memory, shape.shared);
    dynamic = static_cast<char*>(memory);
    at_work = true;
    bool fine = true;
    in_some_order(gridDim.x * gridDim.y * gridDim.z, [&](unsigned b) {
        if (!fine) return;
        blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / gridDim.x / gridDim.y};
        shared_begun.clear();
        if (dynamic) std::memset(dynamic, unwritten, shape.shared);
        fine = run_block(count);
    });
    at_work = false;
    running = nullptr;
    if (!fine) {
        // They are where nobody will go on.
        for (Fiber& f : fibers) f.begun = false;
    }
    release(memory);
    dynamic = nullptr;
}

}  // namespace

// ---- streams

namespace {

struct Graph {
    std::vector<std::function<void()>> nodes;
    std::vector<void*> memory;  // of its own, freed while it was captured
    ~Graph() {
        for (void* p : memory) release(p);
    }
};
int captures = 0;  // under way
thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;

}  // namespace

struct CUstream_st {
    std::shared_ptr<Graph> capture;
};
struct CUevent_st {
    std::shared_ptr<Graph> capture;
};
struct CUgraph_st {
    std::shared_ptr<Graph> graph;
};
struct CUgraphExec_st {
    std::shared_ptr<Graph> graph;
};
struct CUmemPoolHandle_st {};

namespace {

std::set<cudaStream_t> streams;

CUstream_st& of(cudaStream_t s) {
    static CUstream_st standard;  // and its two other names
    const auto bits = reinterpret_cast<std::uintptr_t>(s);
    if (bits <= 2) return standard;
    if (streams.count(s) == 0) keep_fault("a stream that does not exist");
    return *s;
}

void now_or_later(cudaStream_t s, std::function<void()> f) {
    const Lock lock(mutex);
    CUstream_st& stream = of(s);
    if (stream.capture) {
        stream.capture->nodes.push_back(std::move(f));
    } else {
        f();
    }
}

// What a capture on some stream forbids a thread that has not asked otherwise.
bool forbidden() { return captures > 0 && mode != cudaStreamCaptureModeRelaxed; }

bool check_copy(const void* p, std::size_t bytes, bool on_device, const char* what) {
    const Array* const a = array_at(p);
    if (on_device ? holds(a, p, bytes) : a == nullptr) return true;
    keep_fault(std::string(what) + ": " + std::to_string(bytes) + " bytes at " + place_of(p));
    return false;
}

}  // namespace

void emulation::launch(const char* name, const void* function, const Shape& shape,
                       std::function<void()> call) {
    const Lock lock(mutex);
    const std::size_t threads = std::size_t(shape.block.x) * shape.block.y * shape.block.z;
    const std::size_t blocks = std::size_t(shape.grid.x) * shape.grid.y * shape.grid.z;
    const std::size_t room = allowed.count(function) ? allowed[function] : 48 << 10;
    if (threads == 0 || threads > most_threads || blocks == 0 || shape.shared > most_shared ||
        (function && shape.shared > room)) {
        last_error = cudaErrorInvalidConfiguration;
        return;
    }
    now_or_later(shape.stream, [text = std::string(name), shape, call = std::move(call)] {
        run_kernel(text, shape, call);
    });
}

void emulation::allow_shared(const void* function, std::size_t bytes) {
    const Lock lock(mutex);
    allowed[function] = bytes;
}

void* emulation::dynamic_memory() { return dynamic; }

void emulation::fresh(void* shared, std::size_t bytes) {
    if (std::find(shared_begun.begin(), shared_begun.end(), shared) != shared_begun.end()) return;
    shared_begun.push_back(shared);
    std::memset(shared, unwritten, bytes);
}

int emulation::lane() { return number(*running) % warp; }

const std::uint64_t* emulation::meet(const char* what, unsigned mask, std::uint64_t bits,
                                     const char* file, int line) {
    if (!(mask >> lane() & 1))
        fail((std::string(what) + " with a mask without itself").c_str(), file, line);
    wait(State::at_warp, what, mask, bits, file, line);
    return of_warp[number(*running) / warp];
}

void emulation::fail(const char* what, const char* file, int line) {
    const std::string path = file;
    leave(std::string(what) + " at " + path.substr(path.rfind('/') + 1) + ":" +
          std::to_string(line));
}

void __syncthreads(const char* file, int line) {
    wait(State::at_block, "__syncthreads", 0, 0, file, line);
}

void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes, std::size_t zeros) {
    auto& copies = running->copies;
    if (copies.empty()) copies.emplace_back();
    copies.back().push_back({to, from, bytes, zeros});
}
void __pipeline_commit() {
    auto& copies = running->copies;
    if (copies.empty()) copies.emplace_back();
    copies.emplace_back();
}
void __pipeline_wait_prior(std::size_t newest) {
    auto& copies = running->copies;
    while (copies.size() > newest + 1) {
        for (const Copy& c : copies.front()) {
            std::memcpy(c.to, c.from, c.bytes - c.zeros);
            std::memset(static_cast<char*>(c.to) + c.bytes - c.zeros, 0, c.zeros);
        }
        copies.erase(copies.begin());
    }
}

extern "C" {

// The oldest fault that was not asked for yet, or null.
const char* emulation_fault() {
    const Lock lock(mutex);
    static std::string told;
    if (faults.empty()) return nullptr;
    told = faults.front();
    faults.erase(faults.begin());
    return told.c_str();
}

// Whether the device's memory holds an address.
int emulation_holds(const void* address) {
    const Lock lock(mutex);
    return array_at(address) != nullptr;
}

// PyTorch's stream.
void* emulation_stream = nullptr;

// What PyTorch tells of its tensors, for those of its CPU's that stand for the device's.
const dlpack::Exchange* emulation_exchange(const dlpack::Exchange* theirs) {
    static int (*tensor_of)(void*, dlpack::Tensor*) = theirs->tensor_of;
    static dlpack::Exchange ours = *theirs;
    ours.tensor_of = [](void* object, dlpack::Tensor* out) {
        const int status = tensor_of(object, out);
        out->device = {dlpack::cuda, 0};
        return status;
    };
    ours.current_stream = [](std::int32_t, std::int32_t, void** out) {
        *out = emulation_stream;
        return 0;
    };
    return &ours;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorString(cudaError_t status) {
    switch (status) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorNoDevice: return "no device is emulated: SADDLEPOINT_EMULATED is not set";
        case cudaErrorNotReady: return "device not ready";
        case cudaErrorIllegalAddress: return last_fault.c_str();
        case cudaErrorStreamCaptureUnsupported:
            return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated: return "the capture is no longer valid";
    }
    return "unknown error";
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = std::getenv("SADDLEPOINT_EMULATED") ? 1 : 0;
    return *count ? cudaSuccess : wrong(cudaErrorNoDevice);
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    return wrong(device ? cudaErrorInvalidValue : cudaSuccess);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const char* const processors = std::getenv("SADDLEPOINT_EMULATED_MULTIPROCESSORS");
    switch (attribute) {
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
        case cudaDevAttrMultiProcessorCount: *value = processors ? std::atoi(processors) : 4; break;
        case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
        case cudaDevAttrCooperativeLaunch: *value = 0; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(most_shared); break;
        case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
        default: return wrong(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    *p = {};
    std::strcpy(p->name, "emulated on the host");
    p->totalGlobalMem = std::size_t(4) << 30;
    p->sharedMemPerBlockOptin = most_shared;
    p->major = 9;
    (void)cudaDeviceGetAttribute(&p->multiProcessorCount, cudaDevAttrMultiProcessorCount, 0);
    (void)cudaDeviceGetAttribute(&p->l2CacheSize, cudaDevAttrL2CacheSize, 0);
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    const Lock lock(mutex);
    return wrong(captures ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
    *pool = new CUmemPoolHandle_st;
    return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
    delete pool;
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) { return cudaSuccess; }

cudaError_t cudaMallocAsync(void** p, std::size_t bytes, cudaStream_t) {
    const Lock lock(mutex);
    return allocate(p, bytes);
}
cudaError_t cudaMallocFromPoolAsync(void** p, std::size_t bytes, cudaMemPool_t, cudaStream_t s) {
    return cudaMallocAsync(p, bytes, s);
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t s) {
    const Lock lock(mutex);
    CUstream_st& stream = of(s);
    if (!stream.capture) return release(p);
    stream.capture->memory.push_back(p);
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** p, std::size_t bytes) {
    const Lock lock(mutex);
    return forbidden() ? wrong(cudaErrorStreamCaptureUnsupported) : allocate(p, bytes);
}
cudaError_t cudaFree(void* p) {
    const Lock lock(mutex);
    return forbidden() ? wrong(cudaErrorStreamCaptureUnsupported) : release(p);
}
cudaError_t cudaMallocHost(void** p, std::size_t bytes) {
    *p = std::malloc(bytes);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** p, std::size_t bytes, unsigned) {
    return cudaMallocHost(p, bytes);
}
cudaError_t cudaFreeHost(void* p) {
    std::free(p);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s) {
    now_or_later(s, [=] {
        if (kind != cudaMemcpyDefault) {
            const bool onto = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
            const bool off = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
            if (!check_copy(to, bytes, onto, "a copy to")) return;
            if (!check_copy(from, bytes, off, "a copy from")) return;
        }
        guarded("cudaMemcpyAsync", [&] { std::memmove(to, from, bytes); });
    });
    return last_error;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    if (forbidden()) return wrong(cudaErrorStreamCaptureUnsupported);
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t s) {
    now_or_later(s, [=] {
        if (check_copy(to, bytes, true, "a memset of")) std::memset(to, value, bytes);
    });
    return last_error;
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
    if (forbidden()) return wrong(cudaErrorStreamCaptureUnsupported);
    return cudaMemsetAsync(to, value, bytes, nullptr);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) {
    const Lock lock(mutex);
    *s = new CUstream_st;
    streams.insert(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    const Lock lock(mutex);
    if (streams.erase(s)) delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    const Lock lock(mutex);
    return wrong(of(s).capture ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}
cudaError_t cudaStreamQuery(cudaStream_t s) { return cudaStreamSynchronize(s); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    const Lock lock(mutex);
    if (e->capture) of(s).capture = e->capture;  // it joins
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
    const Lock lock(mutex);
    *status = of(s).capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* other) {
    std::swap(mode, *other);
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    const Lock lock(mutex);
    if (of(s).capture) return wrong(cudaErrorStreamCaptureUnsupported);
    of(s).capture = std::make_shared<Graph>();
    ++captures;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
    const Lock lock(mutex);
    const auto made = of(s).capture;
    if (!made) return wrong(cudaErrorInvalidValue);
    --captures;
    of(nullptr).capture = of(nullptr).capture == made ? nullptr : of(nullptr).capture;
    for (cudaStream_t other : streams) {
        if (other->capture == made) other->capture = nullptr;
    }
    *graph = new CUgraph_st{made};
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{graph->graph};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    now_or_later(s, [graph = exec->graph] {
        for (const auto& node : graph->nodes) node();
    });
    return last_error;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    const Lock lock(mutex);
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    const Lock lock(mutex);
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
    *e = new CUevent_st;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    const Lock lock(mutex);
    e->capture = of(s).capture;
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    const Lock lock(mutex);
    return wrong(e->capture ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}
}  // extern "C"

// ---- cuBLAS: products as the sums that they are, column by column

namespace {

struct Blas {
    cudaStream_t stream;
};

template <class T>
int product(void* handle, int ta, int tb, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
            const T* a, std::int64_t lda, std::int64_t next_a, const T* b, std::int64_t ldb,
            std::int64_t next_b, T beta, T* c, std::int64_t ldc, std::int64_t next_c,
            std::int64_t count) {
    if (lda < std::max<std::int64_t>(1, ta ? k : m) ||
        ldb < std::max<std::int64_t>(1, tb ? n : k) || ldc < std::max<std::int64_t>(1, m) ||
        m < 0 || n < 0 || k < 0) {
        return 7;  // an invalid value
    }
    now_or_later(static_cast<Blas*>(handle)->stream, [=] {
        guarded("cublasGemm", [&] {
            for (std::int64_t at = 0; at < count; ++at) {
                const T *x = a + at * next_a, *y = b + at * next_b;
                for (std::int64_t j = 0; j < n; ++j) {
                    T* const column = c + at * next_c + j * ldc;
                    for (std::int64_t i = 0; i < m; ++i) {
                        T sum = 0;
                        for (std::int64_t l = 0; l < k; ++l) {
                            sum += x[ta ? l + i * lda : i + l * lda] *
                                   y[tb ? j + l * ldb : l + j * ldb];
                        }
                        column[i] = alpha * sum + (beta == 0 ? T(0) : beta * column[i]);
                    }
                }
            }
        });
    });
    return 0;
}

}  // namespace

extern "C" {
int cublasCreate_v2(void** handle) {
    *handle = new Blas{};
    return 0;
}
int cublasDestroy_v2(void* handle) {
    delete static_cast<Blas*>(handle);
    return 0;
}
int cublasSetStream_v2(void* handle, cudaStream_t stream) {
    static_cast<Blas*>(handle)->stream = stream;
    return 0;
}
int cublasSetWorkspace_v2(void*, void*, std::size_t) { return 0; }
int cublasSetMathMode(void*, int) { return 0; }
int cublasGetProperty(int part, int* value) {
    *value = part == 0 ? CUDART_VERSION / 1000 : 0;
    return 0;
}
const char* cublasGetStatusString(int status) { return status ? "invalid value" : "success"; }

#define GEMM(T, letter)                                                                            \
    int cublas##letter##gemm_v2_64(void* handle, int ta, int tb, std::int64_t m, std::int64_t n,   \
                                   std::int64_t k, const T* alpha, const T* a, std::int64_t lda,   \
                                   const T* b, std::int64_t ldb, const T* beta, T* c,              \
                                   std::int64_t ldc) {                                             \
        return product<T>(handle, ta, tb, m, n, k, *alpha, a, lda, 0, b, ldb, 0, *beta, c, ldc, 0, \
                          1);                                                                      \
    }                                                                                              \
    int cublas##letter##gemmStridedBatched_64(                                                     \
        void* handle, int ta, int tb, std::int64_t m, std::int64_t n, std::int64_t k,              \
        const T* alpha, const T* a, std::int64_t lda, long long next_a, const T* b,                \
        std::int64_t ldb, long long next_b, const T* beta, T* c, std::int64_t ldc,                 \
        long long next_c, std::int64_t count) {                                                    \
        return product<T>(handle, ta, tb, m, n, k, *alpha, a, lda, next_a, b, ldb, next_b, *beta,  \
                          c, ldc, next_c, count);                                                  \
    }
GEMM(float, S)
GEMM(double, D)
}
