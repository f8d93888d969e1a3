// Matrix products, row-major: OpenBLAS on the CPU, single-threaded inside our own split; cuBLAS on
// CUDA.
#pragma once

#include "core/stream.hpp"
#include "ops/map.hpp"

SP_BEGIN

enum class Transpose { no, yes };

// c (m, n) = op(a) (m, k) op(b) (k, n) + beta c, by the calling member alone.
template <class T>
void gemm(const Context& context, Transpose ta, Transpose tb, index m, index n, index k, const T* a,
          index lda, const T* b, index ldb, T beta, T* c, index ldc);

// The same for each direction; c has a matrix of its own for each.
template <class T>
void gemm(const Context& context, index directions, Transpose ta, Transpose tb, index m, index n,
          index k, const Operand<T>& a, const Operand<T>& b, T beta, const Operand<T>& c);

// Version and kernel set of the library in use.
const char* blas_name();

SP_END
