// Sums: over the rows of matrices, column by column; and over vectors.
#pragma once

#include "core/stream.hpp"
#include "ops/map.hpp"

SP_BEGIN

// For each direction and column the sums, over rows, of F::sums quantities, in double. F adds one
// element's share with its call operator (double (&sum)[sums], operands...) and takes the totals
// with `finish(sum, direction, column)`. All members take part; the results are everybody's on
// return. `partial` is scratch of `reduce_columns_scratch` doubles.
template <class F>
void reduce_columns(const Context& context, const F& f, const Extent& extent,
                    const Operands<F>& operands, double* partial);

// In how many blocks rows are summed: a function of their number alone.
index reduce_blocks(index rows);
inline index reduce_columns_scratch(index directions, index rows, index columns, index sums) {
    return reduce_blocks(rows) * directions * columns * sums;
}

// out[d, c] (+)= sum over rows of x[d, row, c]; by the calling member alone.
template <class T>
void sum_rows(const Context& context, const Extent& extent, const Operand<T>& x, bool accumulate,
              const Operand<T>& out);

SP_END
