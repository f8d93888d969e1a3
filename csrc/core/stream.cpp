#include "core/stream.hpp"

#include <omp.h>
#include <pthread.h>

#include <algorithm>

#include "core/parallel.hpp"

SP_BEGIN

namespace {

// 0 until somebody asks. In a forked child the parent's OpenMP threads do not exist, and a new team
// would wait for them: one thread there.
int threads = 0;
const int at_fork = pthread_atfork(nullptr, nullptr, [] { threads = 1; });

constexpr double work_worth_a_thread = 2e4;

}  // namespace

int num_threads() {
    if (threads == 0) threads = omp_get_max_threads();
    return threads;
}

void set_num_threads(int n) { threads = n; }

void Stream::synchronize() const {}

// Inside `run` this is the barrier of the enclosing parallel region.
void Context::sync() const {
    if (size > 1) {
#pragma omp barrier
    }
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

void run(const Stream& stream, double work, const std::function<void(const Context&)>& f) {
    const int team = static_cast<int>(
        std::min<double>(num_threads(), std::max(1.0, work / work_worth_a_thread)));
    if (team == 1) {
        f(Context{0, 1, stream});
        return;
    }
#pragma omp parallel num_threads(team)
    f(Context{omp_get_thread_num(), omp_get_num_threads(), stream});
}

SP_END
