#include "runtime/model/arch_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "runtime/model/json_file.h"

namespace trireme {
namespace {

constexpr auto kDecoderTensors = std::to_array<TensorName>({
    {"embed.weight", "model.embed_tokens.weight", "token_embd.weight"},
    {"norm.weight", "model.norm.weight", "output_norm.weight"},
    {"head.weight", "lm_head.weight", "output.weight"},
    {"layers.{}.attn_norm.weight", "model.layers.{}.input_layernorm.weight",
     "blk.{}.attn_norm.weight"},
    {"layers.{}.q.weight", "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"},
    {"layers.{}.q.bias", "model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"},
    {"layers.{}.k.weight", "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"},
    {"layers.{}.k.bias", "model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"},
    {"layers.{}.v.weight", "model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"},
    {"layers.{}.v.bias", "model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"},
    {"layers.{}.o.weight", "model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"},
    {"layers.{}.o.bias", "model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias"},
    {"layers.{}.q_norm.weight", "model.layers.{}.self_attn.q_norm.weight",
     "blk.{}.attn_q_norm.weight"},
    {"layers.{}.k_norm.weight", "model.layers.{}.self_attn.k_norm.weight",
     "blk.{}.attn_k_norm.weight"},
    {"layers.{}.ffn_norm.weight", "model.layers.{}.post_attention_layernorm.weight",
     "blk.{}.ffn_norm.weight"},
    {"layers.{}.gate.weight", "model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"},
    {"layers.{}.up.weight", "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"},
    {"layers.{}.down.weight", "model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"},
});

constexpr auto kLlamaHf = std::to_array<std::string_view>({"LlamaForCausalLM"});
constexpr auto kLlamaGguf = std::to_array<std::string_view>({"llama"});
constexpr auto kQwen2Hf = std::to_array<std::string_view>({"Qwen2ForCausalLM"});
constexpr auto kQwen2Gguf = std::to_array<std::string_view>({"qwen2"});
constexpr auto kQwen3Hf = std::to_array<std::string_view>({"Qwen3ForCausalLM"});
constexpr auto kQwen3Gguf = std::to_array<std::string_view>({"qwen3"});

constexpr auto kArchitectures = std::to_array<Architecture>({
    {.name = "llama",
     .hugging_face = kLlamaHf,
     .gguf = kLlamaGguf,
     .tensors = kDecoderTensors,
     .qkv_bias = Presence::kConfigured,
     .o_bias = Presence::kConfigured,
     .gguf_permutes_qk = true},
    {.name = "qwen2",
     .hugging_face = kQwen2Hf,
     .gguf = kQwen2Gguf,
     .tensors = kDecoderTensors,
     .qkv_bias = Presence::kAlways,
     .windows = WindowRule::kUseSlidingWindow},
    {.name = "qwen3",
     .hugging_face = kQwen3Hf,
     .gguf = kQwen3Gguf,
     .tensors = kDecoderTensors,
     .qkv_bias = Presence::kConfigured,
     .o_bias = Presence::kConfigured,
     .qk_norm = true,
     .windows = WindowRule::kUseSlidingWindow},
});

template <typename Names>
std::string known(Names names_of) {
  std::vector<std::string_view> names;
  for (const Architecture& row : kArchitectures) {
    const auto own = names_of(row);
    names.insert(names.end(), own.begin(), own.end());
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

bool contains(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// "layers.12.q.weight" -> layer "12" and "layers.{}.q.weight".
struct Pattern {
  std::string layer;
  std::string text;
};
Pattern pattern_of(std::string_view canonical) {
  constexpr std::string_view kPrefix = "layers.";
  if (!canonical.starts_with(kPrefix)) return {"", std::string(canonical)};
  const auto dot = canonical.find('.', kPrefix.size());
  if (dot == std::string_view::npos) return {"", std::string(canonical)};
  return {std::string(canonical.substr(kPrefix.size(), dot - kPrefix.size())),
          fmt::format("layers.{{}}{}", canonical.substr(dot))};
}

std::string file_name(const Architecture& architecture, std::string_view canonical,
                      std::string_view TensorName::*format) {
  const Pattern pattern = pattern_of(canonical);
  for (const TensorName& row : architecture.tensors) {
    if (row.canonical != pattern.text) continue;
    std::string name(row.*format);
    if (const auto hole = name.find("{}"); hole != std::string::npos) {
      name.replace(hole, 2, pattern.layer);
    }
    return name;
  }
  return "";
}

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture& find_hugging_face_architecture(std::span<const std::string> names,
                                                   const std::string& where) {
  for (const Architecture& row : kArchitectures) {
    for (const std::string& name : names) {
      if (contains(row.hugging_face, name)) return row;
    }
  }
  fail(ErrorCode::kUnimplemented, "{}: architecture '{}' is not known; known are {}", where,
       printable(fmt::format("{}", fmt::join(names, ", "))),
       known([](const Architecture& row) { return row.hugging_face; }));
}

const Architecture& find_gguf_architecture(const std::string& name, const std::string& where) {
  for (const Architecture& row : kArchitectures) {
    if (contains(row.gguf, name)) return row;
  }
  fail(ErrorCode::kUnimplemented, "{}: architecture '{}' is not known; known are {}", where,
       printable(name), known([](const Architecture& row) { return row.gguf; }));
}

std::string hugging_face_name(const Architecture& architecture, std::string_view canonical) {
  return file_name(architecture, canonical, &TensorName::hugging_face);
}

std::string gguf_name(const Architecture& architecture, std::string_view canonical) {
  return file_name(architecture, canonical, &TensorName::gguf);
}

}  // namespace trireme
