// Copies between arrays of the same shape whose elements lie otherwise.
#pragma once

#include "core/stream.hpp"

SP_BEGIN

constexpr int strided_axes = 8;

// Axes from the outermost in memory to the innermost, as the dense one of the two arrays has them;
// strides in elements.
struct CopyPlan {
    int axes = 0;
    index shape[strided_axes] = {}, from[strided_axes] = {}, to[strided_axes] = {};
    index size() const {
        index n = 1;
        for (int a = 0; a < axes; ++a) n *= shape[a];
        return n;
    }
};

// `width` is the bytes of an element: 2, 4 or 8.
void copy_strided(const Stream& stream, const CopyPlan& s, index width, const void* from, void* to);

SP_END
