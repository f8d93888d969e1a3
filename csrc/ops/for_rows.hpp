// Functions of a whole row: softmax, losses. A function is a small struct that carries its pointers
// and has a const call operator (direction, row); one line of a list makes it known.
#pragma once

#include "core/stream.hpp"

SP_BEGIN

// Every member computes the rows it owns.
template <class F>
void for_rows(const Context& context, const F& f, index directions, index rows);

SP_END
