// Muon (Jordan et al. 2024), as torch.optim.Muon: the momentum of a matrix is replaced by
// approximately its nearest semi-orthogonal matrix, by Newton-Schulz steps
//   X = X / max(|X|, eps),  X <- (a + b G + c G^2) X with G = X X'
// in float or double (PyTorch iterates in bfloat16), and is scaled to the matrix's shape. Needs two
// buffers of the tensor's size and three of its shorter side squared.
#pragma once

#include "optim/update_cpu.hpp"

SP_BEGIN

// `scratch` has this many bytes, so that nothing is allocated once a step has begun.
std::size_t muon_bytes(const Tensor& tensor);
void muon(const Stream& stream, const TensorStep& part, const double* hyper, double factor,
          const StepOptions& options, void* scratch);

SP_END
