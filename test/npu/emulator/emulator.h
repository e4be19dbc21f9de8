// What the parts of the emulated CANN share. Device memory is host memory, and everything runs at the call: when a
// function returns, what it was asked to put on a stream has been done.
#pragma once

#include <cstddef>
#include <cstdint>

#include "acl/acl.h"
#include "acl/acl_op_compiler.h"

namespace emulator {

constexpr uint32_t kDevices = 8;

// The message that aclGetRecentErrMsg gives next, in printf's format; returns the code, so that it can be returned on.
aclError fail(aclError code, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Whether the test harness started this process; says once on stderr that it did, or that it did not.
bool started_by_harness();

// Device of this thread.
int32_t current_device();

// Whether [address, address + size) lies within memory of one device (any of them).
bool on_device(const void *address, size_t size);

// Adds one to the count of something, such as "aclrtMemcpy device to host"; see emulator_counts.
void count(const char *what);

// Whether a stream was created and not destroyed; null is the default stream.
bool is_stream(aclrtStream stream);

}  // namespace emulator
