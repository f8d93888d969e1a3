#include "nn/pointwise.hpp"

#include "ops/map_isa.hpp"

SP_BEGIN

SP_INSTANTIATE_POINTWISE

SP_END
