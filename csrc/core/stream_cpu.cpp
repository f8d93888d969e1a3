#include "core/stream.hpp"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>

#include "core/threads_cpu.hpp"

// ThreadSanitizer does not see that libgomp's team begins after what came before it, and ends
// before what comes after.
#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
#define SP_AFTER(what) __tsan_acquire(what)
#define SP_BEFORE(what) __tsan_release(what)
#define SP_UNSEEN __attribute__((no_sanitize_thread))  // what libgomp hands on
#else
#define SP_AFTER(what)
#define SP_BEFORE(what)
#define SP_UNSEEN
#endif

SP_BEGIN

// A barrier whose members look for a moment and then sleep. OpenMP's own spins for milliseconds: on
// a busy machine a member waits for one that is not running, on the very core that this one needs.
class Team {
   public:
    // Throws what has no name for anybody but `run` where another member has failed.
    struct Stopped {};
    void meet(int size) {
        wait(size);
        if (failed_) throw Stopped();
    }
    // At the end of the region nobody throws.
    void wait(int size) {
        const unsigned phase = phase_.load();
        if (arrived_.fetch_add(1) == size - 1) {
            arrived_ = 0;
            open(phase + 1);
            return;
        }
        const auto closed = [&] { return phase_.load() == phase && !failed_; };
        for (int look = 0; closed() && look < looks; ++look) continue;
        if (!closed()) return;
        std::unique_lock<std::mutex> lock(mutex_);
        opened_.wait(lock, [&] { return !closed(); });
    }
    // Keeps the first exception, and lets everybody go.
    void fail(std::exception_ptr error) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::move(error);
        failed_ = true;
        opened_.notify_all();
    }
    void rethrow() const {
        if (error_) std::rethrow_exception(error_);
    }

   private:
    // Some hundred microseconds: at a tenth of it members of equal shares slept, and a step on
    // MNIST took half as long again.
    static constexpr int looks = 100000;

    void open(unsigned phase) {
        const std::lock_guard<std::mutex> lock(mutex_);
        phase_ = phase;
        opened_.notify_all();
    }

    std::atomic<int> arrived_{0};
    std::atomic<unsigned> phase_{0};
    std::atomic<bool> failed_{false};
    std::mutex mutex_;
    std::condition_variable opened_;
    std::exception_ptr error_;
};

namespace {

// 0 until somebody asks. In a forked child the parent's OpenMP threads do not exist, and a new team
// would wait for them: one thread there.
std::atomic<int> threads{0};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { threads = 1; });

// Where a second thread gains less, to wait for one whose core is taken costs a hundred times that.
constexpr double nanoseconds_worth_a_thread = 5e4;

}  // namespace

int num_threads() {
    int n = threads;
    if (n == 0) {
        threads.compare_exchange_strong(n, omp_get_max_threads());
        n = threads;
    }
    return n;
}

void set_num_threads(int n) { threads = n; }

void Stream::synchronize() const {}
void Stream::wait_for(const Stream&) const {}

void Context::sync() const {
    if (team) team->meet(size);
}

Slabs slabs(index rows) {
    const index sixteenth = (rows + 15) / 16;
    const index each = std::max<index>(64, (sixteenth + 15) / 16 * 16);
    return {rows, each, (rows + each - 1) / each};
}

index column_blocks(index columns) {
    index blocks = 1;
    while (blocks < 16 && columns > 256 * blocks) blocks *= 2;
    return blocks;
}

int members_for(double nanoseconds) {
    return static_cast<int>(
        std::min<double>(num_threads(), std::max(1.0, nanoseconds / nanoseconds_worth_a_thread)));
}

void run(const Stream& stream, double nanoseconds, const Work& work) {
    run_on(members_for(nanoseconds), stream, work);
}

SP_UNSEEN void run_on(int members, const Stream& stream, const Work& work) {
    if (members == 1) {
        work(Context{0, 1, stream});
        return;
    }
    Team meeting;
    SP_BEFORE(&meeting);
#pragma omp parallel num_threads(members)
    {
        SP_AFTER(&meeting);
        const Context context{omp_get_thread_num(), omp_get_num_threads(), stream, -1, &meeting};
        try {
            work(context);
        } catch (const Team::Stopped&) {
        } catch (...) {
            meeting.fail(std::current_exception());
        }
        meeting.wait(context.size);
        SP_BEFORE(&meeting);
    }
    SP_AFTER(&meeting);
    meeting.rethrow();
}

SP_END
