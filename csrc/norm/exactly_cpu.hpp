// Passes in double, element by element: where floats do not hold what is in between.
#pragma once

#include "norm/sweep.hpp"

SP_BEGIN

namespace normalization {

// `bit` is that of the first element in the first byte of each run's bits.
void map_exactly(const Sweep& sweep, const Runs& runs, int bit, const double* coefficients);
// As the loops' sums, `moments` too.
void sum_exactly(const Sweep& sweep, const Runs& runs, int bit, const double* coefficients,
                 double* sums);

// Whether sums in float cannot be trusted: they overflowed, or squares vanished.
bool untrusted(const Sweep& sweep, const Runs& runs, const double* sums, int number);
// Whether those of some column may be: a quick look at a tile's.
bool any_untrusted(const Sweep& sweep, const Runs& runs, const double* sums, int number);

}  // namespace normalization

SP_END
