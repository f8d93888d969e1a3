// Random bits, for stochastic rounding and noise, that are a function of a counter and a key alone:
// the same for any number of threads and on any device. Philox 4x32-10 (Salmon, Moraes, Dror & Shaw
// 2011).
#pragma once

#include "core/config.hpp"

namespace saddlepoint {

struct Philox {
    std::uint32_t word[4];
};

SP_HD Philox philox(Philox counter, std::uint64_t key) {
    auto k0 = std::uint32_t(key), k1 = std::uint32_t(key >> 32);
    std::uint32_t a = counter.word[0], b = counter.word[1], c = counter.word[2],
                  d = counter.word[3];
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t x = std::uint64_t(0xD2511F53u) * a;
        const std::uint64_t y = std::uint64_t(0xCD9E8D57u) * c;
        a = std::uint32_t(y >> 32) ^ b ^ k0;
        b = std::uint32_t(y);
        c = std::uint32_t(x >> 32) ^ d ^ k1;
        d = std::uint32_t(x);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{a, b, c, d}};
}

}  // namespace saddlepoint
