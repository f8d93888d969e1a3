// The CPU path of `for_rows`, included by the sources that list functions (see map_isa.hpp).
#pragma once

#include "core/isa_cpu.hpp"
#include "ops/for_rows.hpp"

SP_BEGIN

#define SP_DECLARE(isa)                                          \
    namespace isa {                                              \
    template <class F>                                           \
    void for_owned_rows(const Context&, const F&, index, index); \
    }
SP_FOR_EACH_ISA(SP_DECLARE)
#undef SP_DECLARE

namespace SADDLEPOINT_ISA {

template <class F>
void for_owned_rows(const Context& context, const F& function, index directions, index rows) {
    const F f = function;
    const Slabs all = slabs(rows);
    const Range mine = context.owned(all);
    for (index d = 0; d < directions; ++d) {
        for (index s = mine.begin; s < mine.end; ++s) {
            const Range slab = all[s];
            for (index row = slab.begin; row < slab.end; ++row) f(d, row);
        }
    }
}

}  // namespace SADDLEPOINT_ISA

template <class F>
void for_rows(const Context& context, const F& f, index directions, index rows) {
    SP_PICK_ISA(for_owned_rows, context, f, directions, rows);
}

SP_END

#define SP_INSTANTIATE_ROW_LOOP(F) \
    template void SADDLEPOINT_ISA::for_owned_rows<F>(const Context&, const F&, index, index);
#if defined(SADDLEPOINT_ISA_IS_BASE)
#define SP_INSTANTIATE_ROWS(F) \
    SP_INSTANTIATE_ROW_LOOP(F) \
    template void for_rows<F>(const Context&, const F&, index, index);
#else
#define SP_INSTANTIATE_ROWS(F) SP_INSTANTIATE_ROW_LOOP(F)
#endif
