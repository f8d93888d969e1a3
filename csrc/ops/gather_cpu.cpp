#include "ops/gather.hpp"

#include <cstring>

SP_BEGIN

void gather_rows(const Context& context, index rows, index bytes, const void* from,
                 const std::int64_t* indices, void* to) {
    for_owned_slabs(context, rows, [&](index, Range r) {
        for (index row = r.begin; row < r.end; ++row) {
            std::memcpy(static_cast<char*>(to) + row * bytes,
                        static_cast<const char*>(from) + indices[row] * bytes, bytes);
        }
    });
}

SP_END
