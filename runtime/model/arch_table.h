// What sets one architecture apart from another, as data: one row each.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"

namespace trireme {

// A tensor's canonical name beside the names that file formats give it; "{}" is the layer.
struct TensorName {
  std::string_view canonical;
  std::string_view hugging_face;
  std::string_view gguf;
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
};

struct Architecture {
  std::string_view name;                           // ours, and ModelConfig::architecture
  std::span<const std::string_view> hugging_face;  // config.json's "architectures"
  std::span<const std::string_view> gguf;          // "general.architecture"
  std::span<const TensorName> tensors;
  Presence qkv_bias = Presence::kNever;
  Presence o_bias = Presence::kNever;
  bool qk_norm = false;
  WindowRule windows = WindowRule::kNone;
  bool gguf_permutes_qk = false;  // q and k rows lie interleaved in GGUF files
  Activation activation = Activation::kSilu;
};

std::span<const Architecture> architectures();

// Throws kUnimplemented with the list of known ones; `where` (a path) begins the message.
const Architecture& find_hugging_face_architecture(std::span<const std::string> names,
                                                   const std::string& where);
const Architecture& find_gguf_architecture(const std::string& name, const std::string& where);

// The file's name of a canonical tensor name ("layers.3.q.weight"); empty if the row has none.
std::string hugging_face_name(const Architecture& architecture, std::string_view canonical);
std::string gguf_name(const Architecture& architecture, std::string_view canonical);

}  // namespace trireme
