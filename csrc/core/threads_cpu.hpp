// The number of threads of the CPU path. Never OpenMP's global setting: libgomp is shared with
// whoever else is in the process.
#pragma once

#include "core/stream.hpp"

SP_BEGIN

int num_threads();
void set_num_threads(int n);

// `run` in two parts, for memory by member: the number may be set in between.
int members_for(double nanoseconds);
void run_on(int members, const Stream& stream, const Work& work);

SP_END
