// The element on the device: its types, conversions and name in PTX. A step of bf16 is 2^-8 of the
// value, of f16 2^-11, down to 2^-14 and up to 65504: what is larger becomes infinity, as in any
// f16 computation. NaN and infinity pass through every conversion here.
#pragma once

#ifdef TRIREME_CUDA_F16
#include <cuda_fp16.h>
#else
#include <cuda_bf16.h>
#endif

#include <cstdint>

#include "kernels/cuda/element.h"

namespace trireme::cuda {

#ifdef TRIREME_CUDA_F16
#define TRIREME_ELEMENT_PTX "f16"
using Element = __half;
using Element2 = __half2;

__device__ __forceinline__ float widen(Element value) { return __half2float(value); }
__device__ __forceinline__ float2 widen(Element2 pair) { return __half22float2(pair); }
__device__ __forceinline__ Element narrow(float value) { return __float2half_rn(value); }
__device__ __forceinline__ Element2 narrow(float low, float high) {
  return __floats2half2_rn(low, high);
}
// Of the bits of an element, and of a pair.
__device__ __forceinline__ float widen_bits(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  return __half22float2(reinterpret_cast<const Element2&>(pair));
}
#else
#define TRIREME_ELEMENT_PTX "bf16"
using Element = __nv_bfloat16;
using Element2 = __nv_bfloat162;

__device__ __forceinline__ float widen(Element value) { return __bfloat162float(value); }
__device__ __forceinline__ float2 widen(Element2 pair) { return __bfloat1622float2(pair); }
__device__ __forceinline__ Element narrow(float value) { return __float2bfloat16_rn(value); }
__device__ __forceinline__ Element2 narrow(float low, float high) {
  return __floats2bfloat162_rn(low, high);
}
__device__ __forceinline__ float widen_bits(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
#endif

// Two floats as the pair that a product takes; `low` in the low half.
__device__ __forceinline__ uint32_t pack(float low, float high) {
  const Element2 pair = narrow(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

}  // namespace trireme::cuda
