#include "ops/vector.hpp"

#include <vector>

#include "core/isa_cpu.hpp"

SP_BEGIN

#define SP_DECLARE(isa)                                \
    namespace isa {                                    \
    template <class T>                                 \
    double dot_block(index n, const T* x, const T* y); \
    template <class T>                                 \
    void axpy_block(index n, T a, const T* x, T* y);   \
    template <class T>                                 \
    void scale_block(index n, T a, T* x);              \
    }
SP_FOR_EACH_ISA(SP_DECLARE)
#undef SP_DECLARE

namespace SADDLEPOINT_ISA {

constexpr int lanes = 32;  // independent sums, the same on every instruction set

template <class T>
double dot_block(index n, const T* x, const T* y) {
    double sum[lanes] = {};
    index i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int l = 0; l < lanes; ++l) sum[l] += double(x[i + l]) * double(y[i + l]);
    }
    for (int l = 0; i < n; ++i, ++l) sum[l] += double(x[i]) * double(y[i]);
    for (int half = lanes / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    }
    return sum[0];
}

template <class T>
void axpy_block(index n, T a, const T* x, T* y) {
#pragma GCC ivdep
    for (index i = 0; i < n; ++i) y[i] += a * x[i];
}

template <class T>
void scale_block(index n, T a, T* x) {
    for (index i = 0; i < n; ++i) x[i] *= a;
}

#define SP_INSTANTIATE(T)                                 \
    template double dot_block(index, const T*, const T*); \
    template void axpy_block(index, T, const T*, T*);     \
    template void scale_block(index, T, T*);
SP_INSTANTIATE(float)
SP_INSTANTIATE(double)
#undef SP_INSTANTIATE

}  // namespace SADDLEPOINT_ISA

#if defined(SADDLEPOINT_ISA_IS_BASE)

namespace {

constexpr index block = 8192;

template <class F>
void for_blocks(const Stream& stream, index n, F f) {
    const index count = (n + block - 1) / block;
    run(stream, cost::element * double(n), [&](const Context& context) {
        const Range mine = context.share(count);
        for (index b = mine.begin; b < mine.end; ++b) {
            f(b, b * block, std::min(block, n - b * block));
        }
    });
}

}  // namespace

template <class T>
double dot(const Stream& stream, index n, const T* x, const T* y) {
    constexpr index at_once = 1024;
    double partial[at_once], total = 0.0;
    for (index done = 0; done < n; done += at_once * block) {
        const index left = std::min(n - done, at_once * block);
        for_blocks(stream, left, [&](index b, index begin, index size) {
            const auto dot_block = [&]() -> double {
                SP_PICK_ISA(dot_block, size, x + done + begin, y + done + begin);
            };
            partial[b] = dot_block();
        });
        for (index b = 0; b * block < left; ++b) total += partial[b];
    }
    return total;
}

template <class T>
void axpy(const Stream& stream, index n, T a, const T* x, T* y) {
    for_blocks(stream, n, [&](index, index begin, index size) {
        SP_PICK_ISA(axpy_block, size, a, x + begin, y + begin);
    });
}

template <class T>
void scale(const Stream& stream, index n, T a, T* x) {
    for_blocks(stream, n, [&](index, index begin, index size) {
        SP_PICK_ISA(scale_block, size, a, x + begin);
    });
}

#define SP_INSTANTIATE(T)                                          \
    template double dot(const Stream&, index, const T*, const T*); \
    template void axpy(const Stream&, index, T, const T*, T*);     \
    template void scale(const Stream&, index, T, T*);
SP_INSTANTIATE(float)
SP_INSTANTIATE(double)
#undef SP_INSTANTIATE

#endif

SP_END
