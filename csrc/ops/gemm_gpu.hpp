// CUDA only: where cuBLAS is looked for besides the libraries of the process and the loader's path.
#pragma once

#include "core/config.hpp"

SP_BEGIN

// A file of another major version than the toolkit's is passed over.
void set_library_path(const char* path);

SP_END
