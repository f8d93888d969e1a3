#include "ops/reduce.hpp"

#include "core/isa_cpu.hpp"

SP_BEGIN

#define SP_DECLARE(isa)                                                                           \
    namespace isa {                                                                               \
    template <class T>                                                                            \
    void sum_rows_of(const Extent&, const Operand<T>& x, bool accumulate, const Operand<T>& out); \
    }
SP_FOR_EACH_ISA(SP_DECLARE)
#undef SP_DECLARE

namespace SADDLEPOINT_ISA {

template <class T>
void sum_rows_of(const Extent& extent, const Operand<T>& x, bool accumulate,
                 const Operand<T>& out) {
    constexpr index tile = 64;
    for (index d = 0; d < extent.directions; ++d) {
        T* const to = out.from(d, 0).data;
        for (index c = 0; c < extent.columns; c += tile) {
            const index n = c + tile < extent.columns ? tile : extent.columns - c;
            double sum[tile] = {};
            for (index row = 0; row < extent.rows; ++row) {
                const T* line = x.from(d, row).data + c;
                for (index i = 0; i < n; ++i) sum[i] += double(line[i]);
            }
            for (index i = 0; i < n; ++i)
                to[c + i] = T(sum[i] + (accumulate ? double(to[c + i]) : 0.0));
        }
    }
}

template void sum_rows_of(const Extent&, const Operand<float>&, bool, const Operand<float>&);
template void sum_rows_of(const Extent&, const Operand<double>&, bool, const Operand<double>&);

}  // namespace SADDLEPOINT_ISA

#if defined(SADDLEPOINT_ISA_IS_BASE)

index reduce_blocks(index rows) { return slabs(rows).count; }

template <class T>
void sum_rows(const Context&, const Extent& extent, const Operand<T>& x, bool accumulate,
              const Operand<T>& out) {
    SP_PICK_ISA(sum_rows_of, extent, x, accumulate, out);
}

template void sum_rows(const Context&, const Extent&, const Operand<float>&, bool,
                       const Operand<float>&);
template void sum_rows(const Context&, const Extent&, const Operand<double>&, bool,
                       const Operand<double>&);

#endif

SP_END
