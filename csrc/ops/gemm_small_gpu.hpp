// CUDA only: products that are too small for cuBLAS to spread over the device.
#pragma once

#include "ops/gemm.hpp"

SP_BEGIN

// Whether one wave of our blocks takes the product, in fewer steps than a launch costs.
bool is_small(const Stream& stream, index directions, index m, index n, index k);

// As `gemm` over directions.
template <class T>
void small_gemm(const Stream& stream, index directions, Transpose ta, Transpose tb, index m,
                index n, index k, const Operand<T>& a, const Operand<T>& b, T beta,
                const Operand<T>& c);

SP_END
