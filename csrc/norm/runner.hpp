// Takes passes over a tensor, and between them the steps of norm/coefficients.hpp on its channels:
// all that the devices do differently.
#pragma once

#include <vector>

#include "norm/coefficients.hpp"
#include "norm/sweep.hpp"

SP_BEGIN

namespace normalization {

// After a pass with sums these are in task.sums or are statistics, and `finish` has been called; a
// pass that maps is given the `coefficients` of its function.
void take(const Stream& stream, const Task& task, const std::vector<Sweep>& passes);

}  // namespace normalization

SP_END
