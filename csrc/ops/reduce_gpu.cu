#include "ops/reduce.hpp"

#include "ops/map_gpu.cuh"

SP_BEGIN

index reduce_blocks(index rows) {
    const index each = rows_per_block(rows);
    return (rows + each - 1) / each;
}

namespace {

template <class T>
struct SumRows {
    using scalar = T;
    static constexpr int arity = 1, sums = 1;
    T* out;
    bool accumulate;

    SP_HD void operator()(double (&sum)[1], const T& x) const { sum[0] += double(x); }
    SP_HD void finish(const double (&sum)[1], index, index c) const {
        out[c] = T(sum[0] + (accumulate ? double(out[c]) : 0.0));
    }
};

}  // namespace

// As many columns at a time as the scratch of the stream has room for.
template <class T>
void sum_rows(const Context& context, index rows, Range columns, const T* x, index stride,
              bool accumulate, T* out) {
    const index most = partial_size / std::max<index>(1, reduce_blocks(rows));
    for (index c = columns.begin; c < columns.end; c += most) {
        const index n = std::min(most, columns.end - c);
        reduce_columns<SumRows<T>>(context, {out + c, accumulate}, {1, rows, n},
                                   {{{const_cast<T*>(x) + c, 0, stride}}},
                                   native(context.stream).partial);
    }
}

template void sum_rows(const Context&, index, Range, const float*, index, bool, float*);
template void sum_rows(const Context&, index, Range, const double*, index, bool, double*);

SP_END
