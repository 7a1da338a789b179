// Counter-based randomness: a pure function of (seed, output index, position, draw, token id), so
// that a token's noise is the same whatever the batch and however the vocabulary is split.
//
// The generator is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
// OOPSLA 2014): a key is absorbed word by word through its mixing function, and a token's bits are
// the stream's element `token` (kernels/sampling_math.h: the GPU draws the same).
#pragma once

#include <cstdint>

#include "kernels/sampling_math.h"

namespace trireme {

// One draw of one token of one output: the stream that all token ids index.
inline uint64_t draw_key(uint64_t seed, uint32_t output_index, uint32_t position, uint32_t draw) {
  uint64_t key = mix64(seed + kRngGamma);
  key = mix64(key + kRngGamma * (1 + uint64_t{output_index}));
  key = mix64(key + kRngGamma * (1 + uint64_t{position}));
  return mix64(key + kRngGamma * (1 + uint64_t{draw}));
}

}  // namespace trireme
