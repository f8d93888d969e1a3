// CUDA only: products that are too small for cuBLAS to spread over the device.
#pragma once

#include "ops/gemm.hpp"

SP_BEGIN

// Whether our blocks take no longer for the product than cuBLAS does for any: some microseconds.
bool is_small(const Stream& stream, index directions, index m, index n, index k);

// As `gemm` over directions.
template <class T>
void small_gemm(const Stream& stream, index directions, Transpose ta, Transpose tb, index m,
                index n, index k, const Operand<T>& a, const Operand<T>& b, T beta,
                const Operand<T>& c);

SP_END
