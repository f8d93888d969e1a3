// The CUDA twin of runner.cpp is not written yet; (N, C) arrays go through norm/batch_norm.hpp.
#include "norm/runner.hpp"

#include "core/errors.hpp"

SP_BEGIN

namespace normalization {

void take(const Stream&, const Task&, const std::vector<Sweep>&) {
    throw DeviceError("device: batch normalization of this kind is not on CUDA yet");
}

}  // namespace normalization

SP_END
