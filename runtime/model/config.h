// What a model is, as numbers and flags: global sizes and one LayerConfig per layer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/quant.h"
#include "parallel/layout.h"

namespace trireme {

struct RopeConfig {
  enum class Scaling : uint8_t { kNone, kLinear, kLlama3, kFactors };
  double theta = 10000.0;
  int rotary_dim = 0;  // leading dims of a head that rotate
  Scaling scaling = Scaling::kNone;
  double factor = 1.0;             // linear, llama3
  double low_freq_factor = 1.0;    // llama3
  double high_freq_factor = 4.0;   // llama3
  double original_context = 8192;  // llama3
  // kFactors: one divisor per frequency (GGUF's rope_freqs.weight; longrope's for short or long).
  std::vector<float> factors;
  float magnitude = 1.0f;  // of what is rotated
  bool operator==(const RopeConfig&) const = default;
};

// inv_freq[rotary_dim / 2] in float32, every scaling rule applied, computed as Hugging Face does.
std::vector<float> inverse_frequencies(const RopeConfig& rope);

// Mixture of experts; zero experts mean a dense layer. All layers that have experts have the same.
struct ExpertConfig {
  int experts = 0;
  int experts_per_token = 0;
  int expert_ffn = 0;
  bool normalize_weights = true;
  bool operator==(const ExpertConfig&) const = default;
};

struct LayerConfig {
  int window = 0;  // attention sees the last `window` positions; 0 = all
  int rope = 0;    // index into ModelConfig::ropes
  bool qkv_bias = false;
  bool o_bias = false;
  bool qk_norm = false;     // RMSNorm per head on q and k before rope
  bool post_norms = false;  // norms after attention and feed-forward as well
  float attention_softcap = 0.0f;
  float attention_scale = 0.0f;
  Activation activation = Activation::kSilu;
  ExpertConfig experts;
  bool operator==(const LayerConfig&) const = default;
};

struct ModelConfig {
  std::string architecture;  // the arch_table row's name, e.g. "llama"
  std::string name;          // from the file, for people
  int hidden = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;  // of the layers without experts; 0: there are none
  int64_t vocab = 0;
  int max_context = 0;  // positions the model was made for
  float norm_eps = 1e-5f;
  bool tied_embeddings = false;
  float embedding_scale = 1.0f;
  float final_softcap = 0.0f;
  std::vector<RopeConfig> ropes;
  std::vector<LayerConfig> layers;
  std::vector<int32_t> eos_ids;
  int32_t bos_id = -1;

  // Of the layers that have experts; none of the model's have: zeros.
  ExpertConfig experts() const;

  // The widest block among the feed-forward weights, and among the experts'.
  ModelShape shape(int64_t ffn_multiple, int64_t expert_ffn_multiple = 1) const;
};

}  // namespace trireme
