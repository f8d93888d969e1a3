#include "nn/pointwise.hpp"

#include "ops/map_isa.hpp"

SP_BEGIN

#define SP_BOTH(F) SP_INSTANTIATE_MAP(F<float>) SP_INSTANTIATE_MAP(F<double>)
SP_POINTWISE(SP_BOTH)
#undef SP_BOTH

// Commas within macro arguments need names.
#define SP_OF(A)                                           \
    using Activate##A##F = pointwise::Activate<A, float>;  \
    using Activate##A##D = pointwise::Activate<A, double>; \
    using Curve##A##F = pointwise::Curve<A, float>;        \
    using Curve##A##D = pointwise::Curve<A, double>;       \
    SP_INSTANTIATE_MAP(Activate##A##F)                     \
    SP_INSTANTIATE_MAP(Activate##A##D)                     \
    SP_INSTANTIATE_MAP(Curve##A##F) SP_INSTANTIATE_MAP(Curve##A##D)
SP_ACTIVATIONS(SP_OF)
#undef SP_OF

SP_END
