// How a step walks over a tensor, from the shapes and strides of the arrays that belong to it.
#pragma once

#include <array>
#include <vector>

#include "optim/update.hpp"

SP_BEGIN

// An array where its owner put it; strides in elements.
struct Placement {
    void* data = nullptr;  // null: absent
    Dtype dtype = Dtype::f32;
    const std::vector<index>*shape = nullptr, *strides = nullptr;
};

// Those of one tensor.
struct Placements {
    Placement p, gradient, ema, copy, remainder;
    std::vector<Placement> states;
    bool matrix = false;  // numbered in C order; states have shapes of their own
};

// The axes that a Tensor points to.
class Layout {
   public:
    // Sets all of a tensor that depends on where its arrays lie. Axes are in the order of the
    // parameter's memory; those that are one for every array are merged, and an array that lies as
    // the elements are numbered has no strides.
    void lay_out(const Placements& arrays, Tensor& tensor);

   private:
    std::vector<index> extents_, logical_;
    std::array<std::vector<index>, 5 + max_states> strides_;
};

// Those of a dense array whose axes are in the order of another one's memory, or in C order.
std::vector<index> dense_strides(const std::vector<index>& shape, const std::vector<index>& strides,
                                 bool c_order);

SP_END
