// Copies to shared memory. They are made when they are waited for, as late as the device may.
#pragma once

#include <cuda_runtime.h>

void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes, std::size_t zeros = 0);
void __pipeline_commit();
void __pipeline_wait_prior(std::size_t newest);
