// The exceptions the core throws; the bindings turn them into Python's (errors.py).
#pragma once

#include <stdexcept>

#include "core/config.hpp"

SP_BEGIN

// No usable device, or the device failed.
struct DeviceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

SP_END
