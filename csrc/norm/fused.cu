// The CUDA twin of fused.cpp is not written yet; (N, C) arrays go through norm/batch_norm.hpp.
#include "core/errors.hpp"
#include "norm/fused.hpp"

SP_BEGIN

namespace normalization {

namespace {
[[noreturn]] void missing() {
    throw DeviceError("device: batch normalization of this kind is not on CUDA yet");
}
}  // namespace

double Values::get(index, double) const { missing(); }
void Values::set(index, double) const { missing(); }
index gate_bytes(const Shape&) { missing(); }
void forward(const Stream&, const Layer&, const Origin&, void*, std::uint8_t*) { missing(); }
void moments(const Stream&, const Shape&, const void*, double*) { missing(); }
void backward(const Stream&, const Layer&, const Parts&, const void*, void*, void*, const Values&,
              const Values&) {
    missing();
}
void tangent(const Stream&, const Layer&, const Parts&, const Direction&, void*) { missing(); }
void second(const Stream&, const Layer&, const Parts&, const Direction&, const void*, const void*,
            void*, void*, void*, const Values&, const Values&) {
    missing();
}

}  // namespace normalization

SP_END
