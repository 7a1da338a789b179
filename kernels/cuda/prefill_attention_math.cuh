// Small device functions that both prefill kernels use.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace trireme::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory; zeros if not `valid`, when `from` is not read.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool valid) {
  if (valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
  }
}

__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// cap * tanh(x / cap), given doubled = x / cap * 2 log2(e). Not tanh.approx, whose 2^-11 of an
// error would be large beside the logits' own.
__device__ __forceinline__ float soft_capped(float doubled, float cap) {
  return cap - __fdividef(2.0f * cap, power_of_two(doubled) + 1.0f);
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
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
