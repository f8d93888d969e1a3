// The driver: runs a rule over all tensors in one pass, one parallel region or one launch.
#pragma once

#include <vector>

#include "core/stream.hpp"

SP_BEGIN

constexpr int max_states = 3;

template <class T>
struct Tensor {
    T* p;
    const T* gradient;
    T* state[max_states];
    index size;
};

template <class R>
void update(const Stream& stream, const R& rule,
            const std::vector<Tensor<typename R::scalar>>& tensors);

SP_END
