#include "nn/loss.hpp"

#include "ops/for_rows_isa.hpp"

SP_BEGIN

#define SP_BOTH(F) SP_INSTANTIATE_ROWS(F<float>) SP_INSTANTIATE_ROWS(F<double>)
SP_ROW_FUNCTIONS(SP_BOTH)
#undef SP_BOTH

SP_END
