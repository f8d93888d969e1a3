// Elementwise functions over (directions, rows, columns), operands broadcast by zero strides.
//
// A function is a small struct on scalars: `using scalar`, `static constexpr int arity`, and a
// const call operator on `arity` references. It is made known to both backends by one line in the
// list of the folder it belongs to (nn/pointwise.hpp, norm/batch_norm.hpp).
#pragma once

#include "core/stream.hpp"

SP_BEGIN

struct Extent {
    index directions, rows, columns;
    index size() const { return directions * rows * columns; }
};

template <class T>
struct Operand {
    T* data;
    index direction, row;  // strides; columns are contiguous
    Operand from(index d, index r) const {
        return {data + d * direction + r * row, direction, row};
    }
};

// An array of its own for each direction; one shared by all; a row shared by all rows.
template <class T>
Operand<T> each(const T* x, index rows, index columns) {
    return {const_cast<T*>(x), rows * columns, columns};
}
template <class T>
Operand<T> shared(const T* x, index columns) {
    return {const_cast<T*>(x), 0, columns};
}
template <class T>
Operand<T> per_column(const T* x, index direction = 0) {
    return {const_cast<T*>(x), direction, 0};
}

template <class F>
struct Operands {
    Operand<typename F::scalar> at[F::arity];
};

// Every member computes the rows it owns.
template <class F>
void map(const Context& context, const F& f, const Extent& extent, const Operands<F>& operands);

SP_END
