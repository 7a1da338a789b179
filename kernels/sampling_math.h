// The arithmetic of sampling. Plain operations in one order and no fused multiply-add
// (-ffp-contract=off, -fmad=false), so that CPU and GPU come to the same bits from the same logits.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#ifdef __CUDACC__
#define TRIREME_HOST_DEVICE __host__ __device__
#else
#define TRIREME_HOST_DEVICE
#endif

namespace trireme {

inline constexpr float kNoLogit = -std::numeric_limits<float>::infinity();  // never chosen
inline constexpr float kLargestLogit = std::numeric_limits<float>::max();

// NaN counts as -inf, +inf as the largest finite number.
TRIREME_HOST_DEVICE inline float legal_logit(float logit) {
  if (logit != logit) return kNoLogit;
  return logit < kLargestLogit ? logit : kLargestLogit;
}

// One candidate of a row: a logit and the token it belongs to (global id).
struct Candidate {
  float logit = 0.0f;
  int32_t token = -1;
};

// Better candidates come first: higher logit, then lower id.
TRIREME_HOST_DEVICE inline bool better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// e^x for x <= 0, relative error below 2e-7; a loop over it is vectorized.
// x = n ln2 + r, Taylor series of degree 7 in r.
TRIREME_HOST_DEVICE inline float exp_nonpositive(float x) {
  x = x > -87.0f ? x : -87.0f;  // NaN too: -inf less -inf, where no token is left, has no mass
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float sum = 1.0f / 5040.0f;
  sum = sum * r + 1.0f / 720.0f;
  sum = sum * r + 1.0f / 120.0f;
  sum = sum * r + 1.0f / 24.0f;
  sum = sum * r + 1.0f / 6.0f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  return sum * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

// Probability mass in fixed point, so that sums do not depend on their order: e^x for x <= 0 as a
// multiple of 2^-40. The sum of up to 2^22 tokens fits.
inline constexpr double kMassUnit = 0x1p-40;

// A double of this magnitude has steps of 2^-40: adding it rounds to fixed point.
inline constexpr double kFixedPoint = 0x1.8p12;
TRIREME_HOST_DEVICE inline int64_t fixed_point(float value) {
  return std::bit_cast<int64_t>(static_cast<double>(value) + kFixedPoint) -
         std::bit_cast<int64_t>(kFixedPoint);
}

TRIREME_HOST_DEVICE inline int64_t mass_of(float logit, float max, float inverse_temperature) {
  return fixed_point(exp_nonpositive((logit - max) * inverse_temperature));
}
// Mass is exactly zero below: e^-28.5 is less than half a unit.
inline constexpr float kNoMass = -28.5f;

// Buckets of an eighth of a nat below the maximum; the last one takes all the rest. Monotone in the
// logit: what is in an earlier bucket is better.
inline constexpr int kMassBuckets = 256;
TRIREME_HOST_DEVICE inline int bucket_of(float logit, float max, float inverse_temperature) {
  const float distance = (max - logit) * inverse_temperature * 8.0f;
  return distance < static_cast<float>(kMassBuckets - 1) ? static_cast<int>(distance)
                                                         : kMassBuckets - 1;
}

// The same within one bucket (not the last one): a bucket's 256th parts.
TRIREME_HOST_DEVICE inline int sub_bucket_of(float logit, float max, float inverse_temperature) {
  const float distance = (max - logit) * inverse_temperature * 8.0f;
  if (!(distance < static_cast<float>(kMassBuckets - 1))) return kMassBuckets - 1;
  return static_cast<int>((distance - static_cast<float>(static_cast<int>(distance))) * 256.0f);
}

inline constexpr uint64_t kRngGamma = 0x9e3779b97f4a7c15ull;

// A bijection of 64-bit words whose output bits each depend on all input bits (SplitMix64; see
// runtime/rng.h).
TRIREME_HOST_DEVICE inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// The random bits of one token in one draw.
TRIREME_HOST_DEVICE inline uint64_t token_bits(uint64_t key, int32_t token) {
  return mix64(key + kRngGamma * (1 + uint64_t{static_cast<uint32_t>(token)}));
}

// Uniform in (0, 1), both ends excluded: an odd multiple of 2^-53.
TRIREME_HOST_DEVICE inline double uniform_of(uint64_t bits) {
  return (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
}
TRIREME_HOST_DEVICE inline double uniform(uint64_t key, int32_t token) {
  return uniform_of(token_bits(key, token));
}

// The natural logarithm of a normal x > 0, relative error below 2^-50. x = 2^k m with m in
// [sqrt(1/2), sqrt(2)); log m = 2 artanh((m - 1) / (m + 1)), by its power series.
TRIREME_HOST_DEVICE inline double natural_log(double x) {
  const auto bits = std::bit_cast<int64_t>(x);
  const int64_t k = (bits - 0x3fe6a09e667f3bcd) >> 52;
  const auto m = std::bit_cast<double>(bits - k * (int64_t{1} << 52));
  const double f = m - 1.0;
  const double s = f / (m + 1.0);
  const double t = s * s;
  double sum = 1.0 / 23;
  sum = sum * t + 1.0 / 21;
  sum = sum * t + 1.0 / 19;
  sum = sum * t + 1.0 / 17;
  sum = sum * t + 1.0 / 15;
  sum = sum * t + 1.0 / 13;
  sum = sum * t + 1.0 / 11;
  sum = sum * t + 1.0 / 9;
  sum = sum * t + 1.0 / 7;
  sum = sum * t + 1.0 / 5;
  sum = sum * t + 1.0 / 3;
  // ln 2 in two parts: k times the first is exact.
  const auto whole = static_cast<double>(k);
  const double twice = s + s;
  return whole * 0x1.62e42fefa38p-1 + (twice + (twice * t * sum + whole * 0x1.ef35793c7673p-45));
}

// Gumbel noise from `tail` of uniform_of(): large where tail is small, so that it is most exact
// where it matters (1 - tail has no rounding). gumbel(v) > d only if v < exp(-d). At most
// kMaxGumbel.
TRIREME_HOST_DEVICE inline double gumbel(double tail) {
  return -natural_log(-natural_log(1.0 - tail));
}
inline constexpr double kMaxGumbel = 36.8;  // -log(2^-53) = 36.74

// A token that won a draw.
struct Scored {
  double score = -std::numeric_limits<double>::infinity();
  int32_t token = -1;
};
TRIREME_HOST_DEVICE inline bool better(const Scored& a, const Scored& b) {
  if (b.token < 0 || a.token < 0) return a.token >= 0;
  return a.score != b.score ? a.score > b.score : a.token < b.token;
}

// The draw of one row: temperature and noise, the minimum of p / p_max, and the worst candidate
// that top_p keeps.
struct Draw {
  uint64_t key = 0;
  double inverse_temperature = 1.0;
  double max = 0.0;  // the row's largest logit, over all ranks
  double log_min_p = -std::numeric_limits<double>::infinity();

  Candidate worst{-std::numeric_limits<float>::infinity(), std::numeric_limits<int32_t>::max()};

  TRIREME_HOST_DEVICE bool keeps(float logit) const {
    return logit >= worst.logit &&
           (static_cast<double>(logit) - max) * inverse_temperature >= log_min_p;
  }
  TRIREME_HOST_DEVICE bool keeps(const Candidate& one) const {
    return keeps(one.logit) && !better(worst, one);
  }
  TRIREME_HOST_DEVICE Scored score(Candidate one, double tail) const {
    return {static_cast<double>(one.logit) * inverse_temperature + gumbel(tail), one.token};
  }
  TRIREME_HOST_DEVICE Scored score(Candidate one) const {
    return score(one, uniform(key, one.token));
  }
};

}  // namespace trireme
