// The loops of norm/sweep.hpp on the CPU, compiled once for each instruction set.
#pragma once

#include "core/isa_cpu.hpp"
#include "norm/sweep.hpp"

SP_BEGIN

// `moments` gives the mean and the sum of squares about it, the others their sums.
#define SP_DECLARE(isa)                                                             \
    namespace isa {                                                                 \
    void norm_map_forward(const normalization::Sweep&, const normalization::Runs&,  \
                          const double* one, const void* each);                     \
    void norm_map_backward(const normalization::Sweep&, const normalization::Runs&, \
                           const double* one, const void* each);                    \
    void norm_map_second(const normalization::Sweep&, const normalization::Runs&,   \
                         const double* one, const void* each);                      \
    void norm_sum_forward(const normalization::Sweep&, const normalization::Runs&,  \
                          const double* one, const void* each, double* sums);       \
    void norm_sum_backward(const normalization::Sweep&, const normalization::Runs&, \
                           const double* one, const void* each, double* sums);      \
    void norm_sum_second(const normalization::Sweep&, const normalization::Runs&,   \
                         const double* one, const void* each, double* sums);        \
    }
SP_FOR_EACH_ISA(SP_DECLARE)
#undef SP_DECLARE

SP_END
