// What every reader of a model's configuration shares: limits, and checks across fields.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/model/config.h"

namespace trireme {

namespace limits {
// Far above any model, and low enough that no product of two of them overflows int64.
inline constexpr int64_t kLayers = 4096;
inline constexpr int64_t kHidden = int64_t{1} << 20;
inline constexpr int64_t kHeads = int64_t{1} << 14;
inline constexpr int64_t kHeadDim = 4096;
inline constexpr int64_t kHeadColumns = int64_t{1} << 22;
inline constexpr int64_t kFfn = int64_t{1} << 24;
inline constexpr int64_t kExperts = 4096;
inline constexpr int64_t kAllExperts = int64_t{1} << 18;  // of all layers: each has names of its own
inline constexpr int64_t kId = (int64_t{1} << 31) - 1;  // token ids, vocabulary, context
}  // namespace limits

// The index of `rope` in config.ropes, appended if it is new.
int add_rope(ModelConfig& config, const RopeConfig& rope);

// Longrope, as kFactors: `longer` for models that are served with a context above `original`, else
// `shorter`. Chosen once, not by each sequence's length: what is in the KV cache was rotated before
// the length was known. Factors must be those of the rotary_dim.
void set_long_rope(RopeConfig& rope, std::vector<float> shorter, std::vector<float> longer,
                   int64_t original, int64_t context);
// What longrope multiplies rotated values with where a file does not say: sqrt(1 + ln(longest /
// original) / ln(original)).
float long_rope_magnitude(double longest_over_original, double original);

// A layer's window as the model uses it: one that holds the whole context is none (0).
inline int clip_window(int64_t window, int64_t max_context) {
  return window >= max_context ? 0 : static_cast<int>(window);
}

// Throws kDataLoss if heads do not divide, a head is odd or an id lies outside of the vocabulary.
void check_config(const ModelConfig& config, const std::string& where);

}  // namespace trireme
