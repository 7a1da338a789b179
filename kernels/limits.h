// The physical limits that speed is judged by, measured in the same run as the thing judged.
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace trireme {

// Bytes/s that all threads of the pool read from a buffer much larger than the caches (best of a
// few passes; about half a second in all).
double measure_read_bandwidth(ThreadPool& pool);

enum class Arithmetic : uint8_t {
  kF32,   // fused multiply-add; the path of f32, f16 and bf16 weights
  kInt8,  // 8-bit dot products; quantized weights spend two on each product
};

// Operations/s (a multiply-add is two) of all threads with the instructions that the backend of
// this set uses. Throws kInvalidArgument if the machine lacks `isa`.
double measure_flops(ThreadPool& pool, CpuIsa isa, Arithmetic arithmetic = Arithmetic::kF32);

}  // namespace trireme
