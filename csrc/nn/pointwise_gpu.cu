#include "nn/pointwise.hpp"

#include "ops/map_gpu.cuh"

SP_BEGIN

SP_INSTANTIATE_POINTWISE

SP_END
