// Adafactor (Shazeer & Stern 2018), as torch.optim.Adafactor: second moments of a matrix are kept
// for its rows and its columns only.
//   R += w (mean over columns of g^2 - R),  C += w (mean over rows of g^2 - C),  w = t^beta2_decay,
//   u = g / sqrt(max(R C / max(mean R, eps1), eps1^2)),
//   rate = max(eps2, rms p) min(lr, 1/sqrt t) / max(1, rms u / d)
// An array of one axis keeps its whole second moment. Needs a buffer of the tensor's size.
#pragma once

#include "optim/update_cpu.hpp"

SP_BEGIN

// `scratch` has this many bytes, so that nothing is allocated once a step has begun.
std::size_t adafactor_bytes(const Tensor& tensor);
void adafactor(const Stream& stream, const TensorStep& part, const double* hyper, double factor,
               const StepOptions& options, void* scratch);

SP_END
