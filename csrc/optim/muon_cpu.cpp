#include "optim/muon_cpu.hpp"

#include <algorithm>
#include <cmath>

#include "core/buffer.hpp"
#include "ops/gemm.hpp"
#include "ops/vector.hpp"

SP_BEGIN

namespace {

// From here on a matrix lies as (rows, columns) and G is square of the shorter side: X X' from the
// left or X' X from the right, so that nothing is transposed.
template <class T>
void orthogonalize(const Stream& stream, T* x, T* y, T* square, index rows, index columns,
                   const double* h) {
    const auto a = T(h[MuonA]), b = T(h[MuonB]), c = T(h[MuonC]);
    const bool wide = rows <= columns;
    const index side = std::min(rows, columns), size = rows * columns;
    T* const g = square;
    T* const g2 = g + side * side;
    T* const polynomial = g2 + side * side;
    const double norm = std::sqrt(dot<T>(stream, size, x, x));
    scale<T>(stream, size, T(1.0 / std::max(norm, h[MuonEps])), x);
    const auto steps = static_cast<int>(h[MuonSteps]);
    T* from = x;
    T* to = y;
    const double products = 3.0 * double(steps) * double(size) * double(side);
    run(stream, cost::multiply_add * products, [&](const Context& context) {
        T* const local = from;
        T* in = local;
        T* out = to;
        for (int step = 0; step < steps; ++step) {
            for_owned_slabs(context, side, [&](index, Range r) {
                if (wide) {
                    gemm<T>(context, Transpose::no, Transpose::yes, r.size(), side, columns,
                            in + r.begin * columns, columns, in, columns, T(0), g + r.begin * side,
                            side);
                } else {
                    gemm<T>(context, Transpose::yes, Transpose::no, r.size(), side, rows,
                            in + r.begin, columns, in, columns, T(0), g + r.begin * side, side);
                }
            });
            context.sync();
            for_owned_slabs(context, side, [&](index, Range r) {
                gemm<T>(context, Transpose::no, Transpose::no, r.size(), side, side,
                        g + r.begin * side, side, g, side, T(0), g2 + r.begin * side, side);
                for (index i = r.begin; i < r.end; ++i) {
                    for (index j = 0; j < side; ++j) {
                        const index at = i * side + j;
                        polynomial[at] = b * g[at] + c * g2[at] + (i == j ? a : T(0));
                    }
                }
            });
            context.sync();
            for_owned_slabs(context, rows, [&](index, Range r) {
                if (wide) {
                    gemm<T>(context, Transpose::no, Transpose::no, r.size(), columns, side,
                            polynomial + r.begin * side, side, in, columns, T(0),
                            out + r.begin * columns, columns);
                } else {
                    gemm<T>(context, Transpose::no, Transpose::no, r.size(), columns, side,
                            in + r.begin * columns, columns, polynomial, side, T(0),
                            out + r.begin * columns, columns);
                }
            });
            context.sync();
            std::swap(in, out);
        }
    });
    if (steps % 2 == 1) copy_on_device(stream, x, y, size * sizeof(T));
}

template <class T>
void muon_typed(const Stream& stream, const TensorStep& part, const double* h, double factor,
                const StepOptions& options, T* x) {
    const Tensor& t = *part.tensor;
    gather_direction(stream, part, RuleId::MuonMomentum, h, factor, options, x);
    orthogonalize(stream, x, x + t.size, x + 2 * t.size, t.rows, t.columns, h);
    const double longer = double(std::max(t.rows, t.columns));
    const double adjusted = h[MuonMatchRms] != 0.0
                                ? 0.2 * std::sqrt(longer)
                                : std::sqrt(std::max(1.0, double(t.rows) / t.columns));
    scale<T>(stream, t.size, T(adjusted), x);
    apply_direction(stream, part, options, x);
}

}  // namespace

std::size_t muon_bytes(const Tensor& t) {
    const index side = std::min(t.rows, t.columns);
    return (2 * t.size + 3 * side * side) * (t.p.dtype == Dtype::f64 ? 8 : 4);
}

void muon(const Stream& stream, const TensorStep& part, const double* h, double factor,
          const StepOptions& options, void* scratch) {
    if (part.tensor->p.dtype == Dtype::f64) {
        muon_typed(stream, part, h, factor, options, static_cast<double*>(scratch));
    } else {
        muon_typed(stream, part, h, factor, options, static_cast<float*>(scratch));
    }
}

SP_END
