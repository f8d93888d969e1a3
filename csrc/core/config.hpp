// Words that every source file needs before anything else.
#pragma once

#include <cstdint>

// One formula for both compilers. Always inlined on the host: a body that is compiled once per
// instruction set must never exist as a function of its own, or the linker would keep one for all.
#if defined(__CUDACC__)
#define SP_HD __host__ __device__ __forceinline__
#else
#define SP_HD inline __attribute__((always_inline))
#endif

// _core and _cuda are two builds of the same sources that may be loaded side by side.
#define SP_BEGIN            \
    namespace saddlepoint { \
    inline namespace SADDLEPOINT_BACKEND {
#define SP_END \
    }          \
    }

namespace saddlepoint {
using index = std::int64_t;
}
