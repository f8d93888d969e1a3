// CPU only: sources of hot loops are compiled once for each instruction set, with SADDLEPOINT_ISA
// naming the namespace, and picked at run time. A machine that is not x86-64 has `base` alone.
#pragma once

#include "core/config.hpp"

SP_BEGIN

enum class Isa { base, v3, v4 };  // the x86-64 levels of the psABI: SSE2, AVX2 + FMA, AVX-512

Isa isa();
const char* isa_name();
// For tests: takes a lower level than the machine's best. False when the machine lacks it.
bool set_isa(const char* name);

SP_END

#if defined(__x86_64__)
#define SP_FOR_EACH_ISA(X) X(base) X(v3) X(v4)
#define SP_PICK_ISA(function, ...)                      \
    switch (isa()) {                                    \
        case Isa::v4: return v4::function(__VA_ARGS__); \
        case Isa::v3: return v3::function(__VA_ARGS__); \
        default: return base::function(__VA_ARGS__);    \
    }
#else
#define SP_FOR_EACH_ISA(X) X(base)
#define SP_PICK_ISA(function, ...) return base::function(__VA_ARGS__);
#endif
