// What becomes of one head's vector of q or k before it is used: RMSNorm, then rotary embedding.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/element.cuh"

namespace trireme::cuda {

// cos and sin of position * inv_freq (rounded to float32 as the CPU does), times magnitude. The
// angle is reduced in double: float32 would lose the phase at long contexts.
__device__ inline float2 rope_rotation(float inv_freq, float magnitude, int position) {
  const float angle = static_cast<float>(position) * inv_freq;
  const double half_turns = static_cast<double>(angle) * 0.31830988618379067154;
  float sin, cos;
  sincospif(static_cast<float>(half_turns - 2.0 * rint(half_turns * 0.5)), &sin, &cos);
  return make_float2(cos * magnitude, sin * magnitude);
}

// The two dimensions of pair `i` of a head, i < head_dim / 2: a rotated pair, or two neighbours of
// the part that is not rotated.
__device__ inline int2 pair_dims(int i, int rotary_dim) {
  const int half = rotary_dim / 2;
  return i < half ? make_int2(i, i + half) : make_int2(2 * i, 2 * i + 1);
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// A head's vector spread over a warp: pair lane + 32 * j is low[j], high[j], elements. kPairs >=
// head_dim / 64. Loaded values are not touched before they are used, so that a load can be early.
template <int kPairs>
struct HeadPairs {
  uint16_t low[kPairs], high[kPairs];

  __device__ void load(const Element* x, int head_dim, int rotary_dim, int lane) {
    const auto* bits = reinterpret_cast<const uint16_t*>(x);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int i = min(lane + 32 * j, head_dim / 2 - 1);
      const int2 d = pair_dims(i, rotary_dim);
      low[j] = bits[d.x];
      high[j] = bits[d.y];
    }
  }

  // put(d, value) receives the vector after norm (null: none; [head_dim]) and rope
  // (rotation[rotary_dim / 2] of rope_rotation(); null: none).
  template <typename Put>
  __device__ void prepare(const float* norm, float eps, const float2* rotation, int head_dim,
                          int rotary_dim, int lane, Put put) const {
    float inverse = 1.0f;
    if (norm != nullptr) {
      float squares = 0.0f;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const float a = widen_bits(low[j]), b = widen_bits(high[j]);
        if (lane + 32 * j < head_dim / 2) squares += a * a + b * b;
      }
      inverse = rsqrtf(warp_sum(squares) / static_cast<float>(head_dim) + eps);
    }
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int i = lane + 32 * j;
      if (i >= head_dim / 2) continue;
      const int2 d = pair_dims(i, rotary_dim);
      float a = widen_bits(low[j]), b = widen_bits(high[j]);
      if (norm != nullptr) {
        a *= inverse * norm[d.x];
        b *= inverse * norm[d.y];
      }
      if (rotation != nullptr && i < rotary_dim / 2) {
        const float2 r = rotation[i];
        const float turned = a * r.x - b * r.y;
        b = b * r.x + a * r.y;
        a = turned;
      }
      put(d.x, a);
      put(d.y, b);
    }
  }
};

}  // namespace trireme::cuda
