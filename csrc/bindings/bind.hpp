// One function for each part of the module; module.cpp calls them.
#pragma once

#include <pybind11/pybind11.h>

#include "core/config.hpp"

SP_BEGIN

void bind_device(pybind11::module_& m);  // device_cpu.cpp or device_gpu.cpp
void bind_buffer(pybind11::module_& m);
void bind_ops(pybind11::module_& m);
void bind_optim(pybind11::module_& m);
void bind_batch_norm(pybind11::module_& m);
void bind_nn(pybind11::module_& m);

SP_END
