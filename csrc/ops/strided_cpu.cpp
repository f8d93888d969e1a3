#include "ops/strided.hpp"

#include <algorithm>

SP_BEGIN

void copy_strided(const Stream&, const CopyPlan& s, index width, const void* from, void* to) {
    if (s.size() == 0) return;
    const auto* source = static_cast<const char*>(from);
    auto* target = static_cast<char*>(to);
    const int last = s.axes - 1;
    const index run = s.axes ? s.shape[last] : 1;
    const index step = s.axes ? s.from[last] * width : 0, pace = s.axes ? s.to[last] * width : 0;
    index at[strided_axes] = {};
    while (true) {
        for (index i = 0; i < run; ++i) std::copy_n(source + i * step, width, target + i * pace);
        int k = last - 1;
        for (; k >= 0; --k) {
            source += s.from[k] * width;
            target += s.to[k] * width;
            if (++at[k] < s.shape[k]) break;
            source -= s.from[k] * s.shape[k] * width;
            target -= s.to[k] * s.shape[k] * width;
            at[k] = 0;
        }
        if (k < 0) return;
    }
}

SP_END
