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
    Operand<T> out;
    bool accumulate;

    SP_HD void operator()(double (&sum)[1], const T& x) const { sum[0] += double(x); }
    SP_HD void finish(const double (&sum)[1], index d, index c) const {
        T& total = out.data[d * out.direction + c];
        total = T(sum[0] + (accumulate ? double(total) : 0.0));
    }
};

}  // namespace

// As many sums at a time as the scratch of the stream has room for.
template <class T>
void sum_rows(const Context& context, const Extent& extent, const Operand<T>& x, bool accumulate,
              const Operand<T>& out) {
    const index most = partial_size / std::max<index>(1, reduce_blocks(extent.rows));
    const index directions = std::min(most, extent.directions);
    for (index d = 0; d < extent.directions; d += directions) {
        const index columns = most / directions;
        for (index c = 0; c < extent.columns; c += columns) {
            Operand<T> from = x.from(d, 0), to = out.from(d, 0);
            from.data += c, to.data += c;
            const Extent some{std::min(directions, extent.directions - d), extent.rows,
                              std::min(columns, extent.columns - c)};
            reduce_columns<SumRows<T>>(context, {to, accumulate}, some, {{from}},
                                       native(context.stream).partial);
        }
    }
}

template void sum_rows(const Context&, const Extent&, const Operand<float>&, bool,
                       const Operand<float>&);
template void sum_rows(const Context&, const Extent&, const Operand<double>&, bool,
                       const Operand<double>&);

SP_END
