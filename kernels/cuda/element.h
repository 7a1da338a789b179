// The element of weights, activations and KV: bf16, or f16 where TRIREME_CUDA_F16 is defined. Every
// source that includes this is compiled once for each (docs/adr/0015), into a module of its own.
#pragma once

#include "base/dtype.h"

#ifdef TRIREME_CUDA_COMMON
#error "this source is compiled once for all elements (kernels/cuda.cmake)"
#endif

namespace trireme::cuda {

#ifdef TRIREME_CUDA_F16
inline constexpr DType kElement = DType::kF16;
#else
inline constexpr DType kElement = DType::kBF16;
#endif
inline constexpr bool kElementIsF16 = kElement == DType::kF16;
inline constexpr int64_t kElementBytes = 2;

// To nearest, ties to even; f16 takes what is larger than 65504 to infinity.
inline uint16_t element_bits(float value) {
  return kElementIsF16 ? f32_to_f16(value) : f32_to_bf16(value);
}

inline float element_value(uint16_t bits) {
  return kElementIsF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

}  // namespace trireme::cuda
