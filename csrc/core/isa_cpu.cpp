#include "core/isa_cpu.hpp"

#include <atomic>
#include <cstring>

SP_BEGIN

namespace {

Isa best() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    return v4 ? Isa::v4 : v3 ? Isa::v3 : Isa::base;
#else
    return Isa::base;
#endif
}

constexpr const char* names[] = {"base", "v3", "v4"};
std::atomic<Isa> current{best()};

}  // namespace

Isa isa() { return current; }
const char* isa_name() { return names[static_cast<int>(isa())]; }

bool set_isa(const char* name) {
    for (int i = 0; i <= static_cast<int>(best()); ++i) {
        if (std::strcmp(name, names[i]) == 0) {
            current = static_cast<Isa>(i);
            return true;
        }
    }
    return false;
}

SP_END
