// Long vectors, over a whole team: the arithmetic of Krylov spaces and line searches. Sums are
// taken in double over fixed blocks.
#pragma once

#include "core/stream.hpp"

SP_BEGIN

template <class T>
double dot(const Stream& stream, index n, const T* x, const T* y);

// y += a x
template <class T>
void axpy(const Stream& stream, index n, T a, const T* x, T* y);

// x *= a
template <class T>
void scale(const Stream& stream, index n, T a, T* x);

SP_END
