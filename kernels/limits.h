// The physical limits that speed is judged by, measured in the same run as the thing judged.
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace trireme {

// Bytes/s that all threads of the pool read from a buffer much larger than the caches (best of a
// few passes; about half a second in all).
double measure_read_bandwidth(ThreadPool& pool);

// Operations/s (a multiply-add is two) of all threads with the instructions that the backend of
// this set multiplies such weights with (8-bit dot products are spent two on each product). Throws
// kInvalidArgument if the machine lacks `isa`.
double measure_flops(ThreadPool& pool, CpuIsa isa, QuantFormat weights = QuantFormat::kF32);

}  // namespace trireme
