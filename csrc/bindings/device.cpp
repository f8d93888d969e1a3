#include "bindings/device.hpp"

SP_BEGIN

namespace {

const char* word(int type) {
    switch (type) {
        case dlpack::cpu:
        case dlpack::cuda_host: return "cpu";
        case dlpack::cuda:
        case dlpack::cuda_managed: return "cuda";
        default: return "another one";
    }
}

}  // namespace

void check_device(const dlpack::Device& device, const char* name) {
    if (device.type == device_type() && device.id == 0) return;
    if (std::string(word(device.type)) != device_word()) {
        raise_type(name, std::string("device ") + device_word(), word(device.type));
    }
    if (device.type == dlpack::cuda && device.id != 0) {
        raise_type(name, "device 0", "device " + std::to_string(device.id));
    }
}

SP_END
