// Rows picked from a larger matrix, whatever their elements are.
#pragma once

#include "core/stream.hpp"

SP_BEGIN

// to[row] = from[indices[row]], of `bytes` each, a multiple of 4. Every member copies the rows it
// owns.
void gather_rows(const Context& context, index rows, index bytes, const void* from,
                 const std::int64_t* indices, void* to);

SP_END
