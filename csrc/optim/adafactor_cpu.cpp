#include "optim/adafactor_cpu.hpp"

#include <algorithm>
#include <cmath>

#include "ops/vector.hpp"

SP_BEGIN

namespace {

// g becomes u.
template <class T>
void whole(T* g, T* variance, index size, const Adafactor<T>& rule) {
    const auto weight = T(rule.weight);
    const auto least = T(rule.eps1 * rule.eps1);
    for (index i = 0; i < size; ++i) {
        variance[i] = toward(variance[i], g[i] * g[i], weight);
        g[i] = g[i] / std::sqrt(variance[i] < least ? least : variance[i]);
    }
}

// The sums of a column over each slab of rows.
index column_sums(const Tensor& t) { return slabs(t.rows).count * t.columns; }

// `sums` has room for the column sums and, after them, for a row.
template <class T>
void factored(const Stream& stream, T* g, T* row_var, T* column_var, const Tensor& t,
              const Adafactor<T>& rule, double* sums) {
    const index matrices = t.batch, rows = t.rows, columns = t.columns;
    const auto weight = T(rule.weight), least = T(rule.eps1 * rule.eps1);
    const index most = slabs(rows).count;
    auto* const scale = reinterpret_cast<T*>(sums + most * columns);
    for (index m = 0; m < matrices; ++m, g += rows * columns) {
        T* const r = row_var + m * rows;
        T* const c = column_var + m * columns;
        T mean = T(0);
        std::fill_n(sums, most * columns, 0.0);
        run(stream, cost::update * double(rows * columns), [&](const Context& context) {
            for_owned_slabs(context, rows, [&](index s, Range range) {
                double* const sum = &sums[s * columns];
                for (index i = range.begin; i < range.end; ++i) {
                    double total = 0.0;
                    for (index j = 0; j < columns; ++j) {
                        const double square = double(g[i * columns + j]) * g[i * columns + j];
                        sum[j] += square;
                        total += square;
                    }
                    r[i] = toward(r[i], T(total / double(columns)), weight);
                }
            });
            context.sync();
            if (context.rank == 0) {
                double all = 0.0;
                for (index i = 0; i < rows; ++i) all += double(r[i]);
                mean = std::max(T(all / double(rows)), T(rule.eps1));
                for (index j = 0; j < columns; ++j) {
                    double total = 0.0;
                    for (index s = 0; s < most; ++s) total += sums[s * columns + j];
                    c[j] = toward(c[j], T(total / double(rows)), weight);
                    scale[j] = c[j] / mean;
                }
            }
            context.sync();
            for_owned_slabs(context, rows, [&](index, Range range) {
                for (index i = range.begin; i < range.end; ++i) {
                    for (index j = 0; j < columns; ++j) {
                        const T v = r[i] * scale[j];
                        g[i * columns + j] /= std::sqrt(v < least ? least : v);
                    }
                }
            });
        });
    }
}

template <class T>
void adafactor_typed(const Stream& stream, const TensorStep& part, const double* h, double factor,
                     const StepOptions& options, double* scratch) {
    const Tensor& t = *part.tensor;
    auto& rule = *static_cast<Adafactor<T>*>(part.rule);
    auto* const g = reinterpret_cast<T*>(scratch + column_sums(t) + t.columns);
    gather_direction(stream, part, RuleId::AdafactorGradient, h, factor, options, g);
    auto* const first = static_cast<T*>(t.state[0].data);
    if (t.state[1].data) {
        factored(stream, g, first, static_cast<T*>(t.state[1].data), t, rule, scratch);
    } else {
        whole(g, first, t.size, rule);
    }
    const double rms_u = std::sqrt(dot<T>(stream, t.size, g, g) / double(t.size));
    const double rms_p = std::sqrt(squared_norm(stream, t, t.p) / double(t.size));
    rule.rate = T(std::max(rule.eps2, rms_p) * rule.rho / std::max(1.0, rms_u / rule.d));
    apply_direction(stream, part, options, g);
}

}  // namespace

std::size_t adafactor_bytes(const Tensor& t) {
    return (column_sums(t) + t.columns + t.size) * sizeof(double);
}

void adafactor(const Stream& stream, const TensorStep& part, const double* h, double factor,
               const StepOptions& options, void* scratch) {
    auto* const memory = static_cast<double*>(scratch);
    if (part.tensor->p.dtype == Dtype::f64) {
        adafactor_typed<double>(stream, part, h, factor, options, memory);
    } else {
        adafactor_typed<float>(stream, part, h, factor, options, memory);
    }
}

SP_END
