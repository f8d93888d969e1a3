// The CPU path of `map` and `reduce_columns`: included by the sources that list functions, each of
// which is compiled once for every instruction set.
#pragma once

#include <utility>

#include "core/isa_cpu.hpp"
#include "ops/map.hpp"
#include "ops/reduce.hpp"

SP_BEGIN

#define SP_DECLARE(isa)                                                                      \
    namespace isa {                                                                          \
    template <class F>                                                                       \
    void map_owned(const Context&, const F&, const Extent&, const Operands<F>&);             \
    template <class F>                                                                       \
    void reduce_owned(const Context&, const F&, const Extent&, const Operands<F>&, double*); \
    }
SP_FOR_EACH_ISA(SP_DECLARE)
#undef SP_DECLARE

namespace SADDLEPOINT_ISA {

template <class F, std::size_t... I>
SP_HD void map_line(const F& function, typename F::scalar* const (&pointers)[F::arity], index n,
                    std::index_sequence<I...>) {
    const F f = function;
    typename F::scalar* const p[] = {pointers[I]...};
#pragma GCC ivdep
    for (index i = 0; i < n; ++i) f(p[I][i]...);
}

template <class F>
void map_owned(const Context& context, const F& f, const Extent& extent,
               const Operands<F>& operands) {
    bool dense = true;  // rows follow each other in every operand: one long line
    for (const auto& o : operands.at) dense = dense && o.row == extent.columns;
    const Slabs all = slabs(extent.rows);
    const Range mine = context.owned(all);
    for (index d = 0; d < extent.directions; ++d) {
        for (index s = mine.begin; s < mine.end; ++s) {
            const Range slab = all[s];
            const index lines = dense ? 1 : slab.size();
            const index n = dense ? slab.size() * extent.columns : extent.columns;
            for (index line = 0; line < lines; ++line) {
                typename F::scalar* p[F::arity];
                for (int a = 0; a < F::arity; ++a) {
                    const auto& o = operands.at[a];
                    p[a] = o.data + d * o.direction + (slab.begin + line) * o.row;
                }
                map_line(f, p, n, std::make_index_sequence<F::arity>());
            }
        }
    }
}

template <class F, std::size_t... I>
SP_HD void reduce_line(const F& function, typename F::scalar* const (&pointers)[F::arity], index n,
                       double* sums, index stride, std::index_sequence<I...>) {
    const F f = function;
    typename F::scalar* const p[] = {pointers[I]...};
#pragma GCC ivdep
    for (index i = 0; i < n; ++i) {
        double sum[F::sums];
        for (int s = 0; s < F::sums; ++s) sum[s] = sums[s * stride + i];
        f(sum, p[I][i]...);
        for (int s = 0; s < F::sums; ++s) sums[s * stride + i] = sum[s];
    }
}

// Partial sums of the owned slabs, laid out (slab, direction, sum, column).
template <class F>
void reduce_owned(const Context& context, const F& f, const Extent& extent,
                  const Operands<F>& operands, double* partial) {
    constexpr index tile = 256;  // columns whose sums stay in the first-level cache
    const Slabs all = slabs(extent.rows);
    const Range mine = context.owned(all);
    for (index s = mine.begin; s < mine.end; ++s) {
        const Range slab = all[s];
        for (index d = 0; d < extent.directions; ++d) {
            double* sums = partial + (s * extent.directions + d) * F::sums * extent.columns;
            for (index i = 0; i < F::sums * extent.columns; ++i) sums[i] = 0.0;
            for (index c = 0; c < extent.columns; c += tile) {
                const index n = c + tile < extent.columns ? tile : extent.columns - c;
                for (index row = slab.begin; row < slab.end; ++row) {
                    typename F::scalar* p[F::arity];
                    for (int a = 0; a < F::arity; ++a) {
                        const auto& o = operands.at[a];
                        p[a] = o.data + d * o.direction + row * o.row + c;
                    }
                    reduce_line(f, p, n, sums + c, extent.columns,
                                std::make_index_sequence<F::arity>());
                }
            }
        }
    }
}

}  // namespace SADDLEPOINT_ISA

template <class F>
void map(const Context& context, const F& f, const Extent& extent, const Operands<F>& operands) {
    SP_PICK_ISA(map_owned, context, f, extent, operands);
}

template <class F>
void reduce_columns(const Context& context, const F& f, const Extent& extent,
                    const Operands<F>& operands, double* partial) {
    const auto reduce_owned = [&] {
        SP_PICK_ISA(reduce_owned, context, f, extent, operands, partial);
    };
    context.sync();  // the operands' rows and `partial` may still be in use
    reduce_owned();
    context.sync();
    const index slab_count = slabs(extent.rows).count;
    const Range mine = context.share(extent.columns);
    for (index d = 0; d < extent.directions; ++d) {
        for (index c = mine.begin; c < mine.end; ++c) {
            double total[F::sums] = {};
            for (index s = 0; s < slab_count; ++s) {
                const double* sums =
                    partial + (s * extent.directions + d) * F::sums * extent.columns + c;
                for (int i = 0; i < F::sums; ++i) total[i] += sums[i * extent.columns];
            }
            f.finish(total, d, c);
        }
    }
    context.sync();
}

SP_END

// One instruction set instantiates the loops; the first of them also the choice.
#define SP_INSTANTIATE_MAP_LOOP(F)                                                       \
    template void SADDLEPOINT_ISA::map_owned<F>(const Context&, const F&, const Extent&, \
                                                const Operands<F>&);
#define SP_INSTANTIATE_REDUCE_LOOP(F)                                                       \
    template void SADDLEPOINT_ISA::reduce_owned<F>(const Context&, const F&, const Extent&, \
                                                   const Operands<F>&, double*);
#if defined(SADDLEPOINT_ISA_IS_BASE)
#define SP_INSTANTIATE_MAP(F)  \
    SP_INSTANTIATE_MAP_LOOP(F) \
    template void map<F>(const Context&, const F&, const Extent&, const Operands<F>&);
#define SP_INSTANTIATE_REDUCE(F)                                                                 \
    SP_INSTANTIATE_REDUCE_LOOP(F)                                                                \
    template void reduce_columns<F>(const Context&, const F&, const Extent&, const Operands<F>&, \
                                    double*);
#else
#define SP_INSTANTIATE_MAP(F) SP_INSTANTIATE_MAP_LOOP(F)
#define SP_INSTANTIATE_REDUCE(F) SP_INSTANTIATE_REDUCE_LOOP(F)
#endif
