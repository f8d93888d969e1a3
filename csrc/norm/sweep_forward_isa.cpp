// Moments and the forward pass.
#include "norm/sweep_isa.hpp"

SP_BEGIN

namespace SADDLEPOINT_ISA {

namespace {

// How many elements the shift is the mean of, and of how many rows.
constexpr index sampled = 256, sampled_rows = 8;

// Sums are shifted by the mean of the first elements: squares then keep their digits whatever the
// mean is. In double, so that the mean of equal values is exact.
template <class S>
void moments_same(const Sweep& sweep, const Runs& runs, double* sums) {
    const Arrays<S> a(sweep);
    const index n = std::min(sampled, runs.length), size = runs.size();
    double lane[8] = {};
    for (index i = 0; i + 8 <= n; i += 8) {
        for (index l = 0; l < 8; ++l) lane[l] += double(widen(S{a.in[X][runs.begin + i + l]}));
    }
    for (index i = n / 8 * 8; i < n; ++i) lane[i % 8] += double(widen(S{a.in[X][runs.begin + i]}));
    double total = 0.0;
    for (double x : lane) total += x;
    const double shift = double(Computed<S>(total / double(n)));
    sum_same<Moments, S>({sweep.setting}, sweep, runs, &shift, sums);
    const double offset = sums[0] / double(size), square = sums[1] - sums[0] * offset;
    sums[0] = shift + offset;
    sums[1] = square < 0.0 ? 0.0 : square;  // a NaN stays
}

template <class S>
void moments_each(const Sweep& sweep, const Runs& runs, double* sums) {
    using T = Computed<S>;
    const Arrays<S> a(sweep);
    const index n = runs.length, rows = std::min(sampled_rows, runs.count);
    alignas(64) T shift[row_tile];
    double* const total = sums;
    std::fill_n(total, n, 0.0);
    for (index row = 0; row < rows; ++row) {
        const Raw<S>* const x = a.in[X] + runs.begin + row * runs.stride;
        for (index i = 0; i < n; ++i) total[i] += double(widen(S{x[i]}));
    }
    for (index i = 0; i < n; ++i) shift[i] = T(total[i] / double(rows));
    sum_each<Moments, S>({sweep.setting}, sweep, runs, shift, sums);
    double* const mean = sums;
    double* const square = sums + row_stride;
    for (index i = 0; i < n; ++i) {
        const double offset = mean[i] / double(runs.count), rest = square[i] - mean[i] * offset;
        mean[i] = double(shift[i]) + offset;
        square[i] = rest < 0.0 ? 0.0 : rest;
    }
}

}  // namespace

void norm_sum_forward(const Sweep& sweep, const Runs& runs, const double* one, const void*,
                      double* sums) {
    with_storage(sweep.dtype, [&](auto storage) {
        using S = typename decltype(storage)::type;
        if (one) {
            moments_same<S>(sweep, runs, sums);
        } else {
            moments_each<S>(sweep, runs, sums);
        }
    });
}

void norm_map_forward(const Sweep& sweep, const Runs& runs, const double* one, const void* each) {
    with_first_order_loop(sweep, [&](const Sweep& s, auto activation) {
        map_one<Forward<decltype(activation)>>(s, runs, one, each);
    });
}

}  // namespace SADDLEPOINT_ISA

SP_END
