// Counter-based randomness: a pure function of (seed, output index, position, draw, token id), so
// that a token's noise is the same whatever the batch and however the vocabulary is split.
//
// The generator is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
// OOPSLA 2014): a key is absorbed word by word through its mixing function, and a token's bits are
// the stream's element `token`.
#pragma once

#include <cmath>
#include <cstdint>

namespace trireme {

inline constexpr uint64_t kRngGamma = 0x9e3779b97f4a7c15ull;

// A bijection of 64-bit words whose output bits each depend on all input bits.
inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// One draw of one token of one output: the stream that all token ids index.
inline uint64_t draw_key(uint64_t seed, uint32_t output_index, uint32_t position, uint32_t draw) {
  uint64_t key = mix64(seed + kRngGamma);
  key = mix64(key + kRngGamma * (1 + uint64_t{output_index}));
  key = mix64(key + kRngGamma * (1 + uint64_t{position}));
  return mix64(key + kRngGamma * (1 + uint64_t{draw}));
}

// Uniform in (0, 1), both ends excluded, exactly representable.
inline double uniform(uint64_t key, int32_t token) {
  const uint64_t bits = mix64(key + kRngGamma * (1 + uint64_t{static_cast<uint32_t>(token)}));
  return (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
}

// Gumbel noise from `tail`, uniform in (0, 1): large where tail is small, so that it is most exact
// where it matters. gumbel(v) > d only if v < exp(-d). At most kMaxGumbel.
inline double gumbel(double tail) { return -std::log(-std::log1p(-tail)); }
inline constexpr double kMaxGumbel = 36.8;  // -log(2^-53) = 36.74

}  // namespace trireme
