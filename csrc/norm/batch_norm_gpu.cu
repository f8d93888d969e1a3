#include "norm/batch_norm.hpp"

#include "ops/map_gpu.cuh"

SP_BEGIN

#define SP_BOTH(F) SP_INSTANTIATE_MAP(F<float>) SP_INSTANTIATE_MAP(F<double>)
SP_BATCH_NORM_MAPS(SP_BOTH)
#undef SP_BOTH
#define SP_BOTH(F) SP_INSTANTIATE_REDUCE(F<float>) SP_INSTANTIATE_REDUCE(F<double>)
SP_BATCH_NORM_SUMS(SP_BOTH)
#undef SP_BOTH

SP_END
