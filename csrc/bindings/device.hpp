// This module's device, and its streams beside those of other libraries.
#pragma once

#include "bindings/dlpack.hpp"
#include "bindings/raise.hpp"
#include "core/stream.hpp"

SP_BEGIN

// DLPack's code of the device that this module works on, and its word.
int device_type();
const char* device_word();
// The one rule: an array lies on device 0 of the module's kind, or where that device reads it as
// its own. Raises TypeError.
void check_device(const dlpack::Device& device, const char* name);

// The stream that calls of this thread run on, and its DLPack integer: 0 on the CPU.
Stream current_stream();
// Another library's stream; on the CPU there is only one.
Stream foreign_stream(std::uintptr_t handle);
std::uintptr_t stream_handle(const Stream& stream);

// Memory of ours, for a consumer on another stream, which is told to wait for ours. False when
// there is nothing to order; else `wait_for_consumers` comes before the memory is used again.
bool make_consumer_wait(const Stream& ours, std::intptr_t consumer);
void wait_for_consumers() noexcept;
// Memory of others: kept until our stream is done with it, which theirs does not wait for.
py::object keep_until_done(py::object owner);

SP_END
