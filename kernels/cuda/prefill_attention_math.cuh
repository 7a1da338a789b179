// Small device functions that both prefill kernels use.
#pragma once

#include "kernels/cuda/ptx.cuh"

namespace trireme::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// cap * tanh(x / cap), given doubled = x / cap * 2 log2(e). Not tanh.approx, whose 2^-11 of an
// error would be large beside the logits' own.
__device__ __forceinline__ float soft_capped(float doubled, float cap) {
  return cap - __fdividef(2.0f * cap, exp2_fast(doubled) + 1.0f);
}

// Over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

}  // namespace trireme::cuda
