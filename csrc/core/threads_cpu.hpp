// The number of threads of the CPU path. Never OpenMP's global setting: libgomp is shared with
// whoever else is in the process.
#pragma once

#include "core/config.hpp"

SP_BEGIN

int num_threads();
void set_num_threads(int n);

SP_END
