#include "runtime/model/config.h"

#include <cmath>
#include <numbers>
#include <utility>

#include "base/error.h"
#include "runtime/model/config_check.h"

namespace trireme {
namespace {

// Llama 3.1's rule: high frequencies stay, low ones are divided by `factor`, between them a blend.
void apply_llama3(const RopeConfig& rope, std::vector<float>& inv_freq) {
  const double low_wavelength = rope.original_context / rope.low_freq_factor;
  const double high_wavelength = rope.original_context / rope.high_freq_factor;
  for (float& frequency : inv_freq) {
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength < high_wavelength) continue;
    if (wavelength > low_wavelength) {
      frequency = static_cast<float>(frequency / rope.factor);
      continue;
    }
    const double smooth = (rope.original_context / wavelength - rope.low_freq_factor) /
                          (rope.high_freq_factor - rope.low_freq_factor);
    frequency = static_cast<float>((1.0 - smooth) * frequency / rope.factor + smooth * frequency);
  }
}

}  // namespace

std::vector<float> inverse_frequencies(const RopeConfig& rope) {
  const int half = rope.rotary_dim / 2;
  std::vector<float> inv_freq(static_cast<size_t>(half));
  const auto theta = static_cast<float>(rope.theta);
  for (int i = 0; i < half; ++i) {
    // Float32 as in Hugging Face: 1 / theta^(2i / dim).
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rope.rotary_dim);
    inv_freq[static_cast<size_t>(i)] = 1.0f / std::pow(theta, exponent);
  }
  switch (rope.scaling) {
    case RopeConfig::Scaling::kNone: break;
    case RopeConfig::Scaling::kLinear:
      for (float& frequency : inv_freq) frequency /= static_cast<float>(rope.factor);
      break;
    case RopeConfig::Scaling::kLlama3: apply_llama3(rope, inv_freq); break;
    case RopeConfig::Scaling::kFactors:
      if (rope.factors.size() != inv_freq.size()) {
        fail(ErrorCode::kInternal, "rope: {} factors for {} frequencies", rope.factors.size(),
             inv_freq.size());
      }
      for (size_t i = 0; i < inv_freq.size(); ++i) inv_freq[i] /= rope.factors[i];
      break;
  }
  return inv_freq;
}

ExpertConfig ModelConfig::experts() const {
  for (const LayerConfig& layer : layers) {
    if (layer.experts.experts > 0) return layer.experts;
  }
  return {};
}

ModelShape ModelConfig::shape(int64_t ffn_multiple, int64_t expert_ffn_multiple) const {
  ModelShape shape;
  shape.layers = static_cast<int>(layers.size());
  shape.hidden = hidden;
  shape.q_heads = q_heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = head_dim;
  shape.ffn = ffn;
  shape.vocab = vocab;
  shape.ffn_multiple = ffn_multiple;
  const ExpertConfig expert = experts();
  shape.experts = expert.experts;
  shape.experts_per_token = expert.experts_per_token;
  shape.expert_ffn = expert.expert_ffn;
  shape.expert_ffn_multiple = expert_ffn_multiple;
  shape.tied_embeddings = tied_embeddings;
  return shape;
}

int add_rope(ModelConfig& config, const RopeConfig& rope) {
  for (size_t i = 0; i < config.ropes.size(); ++i) {
    if (config.ropes[i] == rope) return static_cast<int>(i);
  }
  config.ropes.push_back(rope);
  return static_cast<int>(config.ropes.size()) - 1;
}

void set_long_rope(RopeConfig& rope, std::vector<float> shorter, std::vector<float> longer,
                   int64_t original, int64_t context) {
  rope.scaling = RopeConfig::Scaling::kFactors;
  rope.factors = std::move(context > original ? longer : shorter);
}

float long_rope_magnitude(double longest_over_original, double original) {
  if (longest_over_original <= 1.0) return 1.0f;
  return static_cast<float>(std::sqrt(1.0 + std::log(longest_over_original) / std::log(original)));
}

void check_config(const ModelConfig& config, const std::string& where) {
  if (config.q_heads % config.kv_heads != 0) {
    fail(ErrorCode::kDataLoss, "{}: {} attention heads are no multiple of {} key-value heads",
         where, config.q_heads, config.kv_heads);
  }
  if (config.head_dim % 2 != 0) {
    fail(ErrorCode::kDataLoss, "{}: head dimension {} is odd", where, config.head_dim);
  }
  if (int64_t{config.q_heads} * config.head_dim > limits::kHeadColumns) {
    fail(ErrorCode::kDataLoss, "{}: {} heads of {} are more than {} columns", where, config.q_heads,
         config.head_dim, limits::kHeadColumns);
  }
  int64_t experts = 0;
  for (const LayerConfig& layer : config.layers) experts += layer.experts.experts;
  if (experts > limits::kAllExperts) {
    fail(ErrorCode::kDataLoss, "{}: the layers have {} experts, more than {}", where, experts,
         limits::kAllExperts);
  }
  for (const int32_t id : config.eos_ids) {
    if (id >= config.vocab) {
      fail(ErrorCode::kDataLoss, "{}: end-of-sequence id {} is outside of the {} token ids", where,
           id, config.vocab);
    }
  }
}

}  // namespace trireme
