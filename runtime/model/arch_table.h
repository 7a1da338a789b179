// What sets one architecture apart from another, as data: one row each.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"

namespace trireme {

// Which rows of a file's tensor a canonical one is, where formats keep several as one.
enum class RowsOf : uint8_t {
  kAll,
  kQkvQ,     // q, k and v rows, in this order
  kQkvK,     //
  kQkvV,     //
  kTwoGate,  // gate and up rows, in this order
  kTwoUp,    //
  kExperts,  // [experts, rows, cols]
};

// A tensor's canonical name beside the names that file formats give it; the first "{}" is the
// layer, the second the expert.
struct TensorName {
  std::string_view canonical;
  std::string_view hugging_face;
  std::string_view gguf;
  RowsOf hugging_face_rows = RowsOf::kAll;
  RowsOf gguf_rows = RowsOf::kAll;
};

// Where a file keeps a canonical tensor; an empty name: the architecture has none.
struct TensorPlace {
  std::string name;
  RowsOf rows = RowsOf::kAll;
};

// Whether layers have a thing, in Hugging Face's files (GGUF: whether its tensors are there).
enum class Presence : uint8_t {
  kNever,
  kAlways,
  kConfigured,  // config.json's "attention_bias"
};

// Where config.json says which layers have a sliding window.
enum class WindowRule : uint8_t {
  kNone,
  kUseSlidingWindow,  // use_sliding_window, sliding_window, max_window_layers or layer_types
  kAllLayers,         // sliding_window: all or, where it is null, none
  kAllIfUsed,         // the same, where use_sliding_window says so
  kPattern,           // all but every sliding_window_pattern-th, or as layer_types say
};

// How config.json speaks of experts.
enum class ExpertRule : uint8_t {
  kNone,
  kMixtral,  // num_local_experts of intermediate_size
  kQwenMoe,  // num_experts of moe_intermediate_size; mlp_only_layers, decoder_sparse_step
};

struct Architecture {
  std::string_view name;                           // ours, and ModelConfig::architecture
  std::span<const std::string_view> hugging_face;  // config.json's "architectures"
  std::span<const std::string_view> gguf;          // "general.architecture"
  // Of "architectures" again: models of more than text, whose language model this is. Its
  // configuration is in "text_config"; the names of its tensors begin with one of these instead of
  // "model.".
  std::span<const std::string_view> wrapped_in{};
  std::span<const std::string_view> wrapped_prefixes{};
  std::string_view wrapped_defaults{};  // JSON: what transformers takes for fields left out there
  std::span<const TensorName> tensors;
  std::span<const TensorName> own_tensors{};  // instead of those of the same canonical name
  Presence qkv_bias = Presence::kNever;
  Presence o_bias = Presence::kNever;
  bool qk_norm = false;
  WindowRule windows = WindowRule::kNone;
  ExpertRule experts = ExpertRule::kNone;
  Activation activation = Activation::kSilu;
  bool post_norms = false;        // norms after attention and feed-forward as well
  bool scales_embedding = false;  // by the root of the hidden size
  bool norms_less_one = false;    // Hugging Face's files hold norm weights less 1
  bool partial_rotary = false;    // a part of a head may rotate
  bool long_rope = false;         // rope may be longrope
  bool exceeds_f16 = false;       // published models' activations do, beyond 65504

  // Of GGUF files.
  bool gguf_permutes_qk = false;  // q and k rows lie interleaved
  bool gguf_experts = false;      // there may be experts
  int gguf_hidden_scale = 0;      // with so many layers scores are scaled by hidden / heads

  // Where a file does not say.
  double theta = 10000.0;
  double local_theta = 0.0;  // of windowed layers; 0: as the others
  int window = 0;            // kAllLayers; 0: none
  int window_pattern = 0;    // kPattern
};

std::span<const Architecture> architectures();

// Throws kUnimplemented with the list of known ones; `where` (a path) begins the message.
const Architecture& find_hugging_face_architecture(std::span<const std::string> names,
                                                   const std::string& where);
const Architecture& find_gguf_architecture(const std::string& name, const std::string& where);

// The file's place of a canonical tensor name ("layers.3.q.weight").
TensorPlace hugging_face_place(const Architecture& architecture, std::string_view canonical);
TensorPlace gguf_place(const Architecture& architecture, std::string_view canonical);

}  // namespace trireme
