#include "ops/reduce.hpp"

#include "core/isa_cpu.hpp"

SP_BEGIN

#define SP_DECLARE(isa)                                                                    \
    namespace isa {                                                                        \
    template <class T>                                                                     \
    void sum_rows_of(index rows, Range columns, const T* x, index stride, bool accumulate, \
                     T* out);                                                              \
    }
SP_FOR_EACH_ISA(SP_DECLARE)
#undef SP_DECLARE

namespace SADDLEPOINT_ISA {

template <class T>
void sum_rows_of(index rows, Range columns, const T* x, index stride, bool accumulate, T* out) {
    constexpr index tile = 64;
    for (index c = columns.begin; c < columns.end; c += tile) {
        const index n = c + tile < columns.end ? tile : columns.end - c;
        double sum[tile] = {};
        for (index row = 0; row < rows; ++row) {
            const T* line = x + row * stride + c;
            for (index i = 0; i < n; ++i) sum[i] += double(line[i]);
        }
        for (index i = 0; i < n; ++i)
            out[c + i] = T(sum[i] + (accumulate ? double(out[c + i]) : 0.0));
    }
}

template void sum_rows_of(index, Range, const float*, index, bool, float*);
template void sum_rows_of(index, Range, const double*, index, bool, double*);

}  // namespace SADDLEPOINT_ISA

#if defined(SADDLEPOINT_ISA_IS_BASE)

index reduce_blocks(index rows) { return slabs(rows).count; }

template <class T>
void sum_rows(const Context&, index rows, Range columns, const T* x, index stride, bool accumulate,
              T* out) {
    SP_PICK_ISA(sum_rows_of, rows, columns, x, stride, accumulate, out);
}

template void sum_rows(const Context&, index, Range, const float*, index, bool, float*);
template void sum_rows(const Context&, index, Range, const double*, index, bool, double*);

#endif

SP_END
