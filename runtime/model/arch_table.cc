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

// Experts as GGUF keeps them in every architecture.
constexpr TensorName kExpertGate{"layers.{}.experts.{}.gate.weight", "",
                                 "blk.{}.ffn_gate_exps.weight", RowsOf::kAll, RowsOf::kExperts};
constexpr TensorName kExpertUp{"layers.{}.experts.{}.up.weight", "", "blk.{}.ffn_up_exps.weight",
                               RowsOf::kAll, RowsOf::kExperts};
constexpr TensorName kExpertDown{"layers.{}.experts.{}.down.weight", "",
                                 "blk.{}.ffn_down_exps.weight", RowsOf::kAll, RowsOf::kExperts};
constexpr TensorName named(TensorName name, std::string_view hugging_face) {
  name.hugging_face = hugging_face;
  return name;
}

constexpr auto kLlamaTensors = std::to_array<TensorName>({
    {"layers.{}.router.weight", "", "blk.{}.ffn_gate_inp.weight"},
    kExpertGate,
    kExpertUp,
    kExpertDown,
});

constexpr auto kMixtralTensors = std::to_array<TensorName>({
    {"layers.{}.router.weight", "model.layers.{}.block_sparse_moe.gate.weight", ""},
    named(kExpertGate, "model.layers.{}.block_sparse_moe.experts.{}.w1.weight"),
    named(kExpertUp, "model.layers.{}.block_sparse_moe.experts.{}.w3.weight"),
    named(kExpertDown, "model.layers.{}.block_sparse_moe.experts.{}.w2.weight"),
});

constexpr auto kQwen3MoeTensors = std::to_array<TensorName>({
    {"layers.{}.router.weight", "model.layers.{}.mlp.gate.weight", "blk.{}.ffn_gate_inp.weight"},
    named(kExpertGate, "model.layers.{}.mlp.experts.{}.gate_proj.weight"),
    named(kExpertUp, "model.layers.{}.mlp.experts.{}.up_proj.weight"),
    named(kExpertDown, "model.layers.{}.mlp.experts.{}.down_proj.weight"),
});

constexpr auto kGemma3Tensors = std::to_array<TensorName>({
    {"layers.{}.attn_post_norm.weight", "model.layers.{}.post_attention_layernorm.weight",
     "blk.{}.post_attention_norm.weight"},
    {"layers.{}.ffn_norm.weight", "model.layers.{}.pre_feedforward_layernorm.weight",
     "blk.{}.ffn_norm.weight"},
    {"layers.{}.ffn_post_norm.weight", "model.layers.{}.post_feedforward_layernorm.weight",
     "blk.{}.post_ffw_norm.weight"},
});

constexpr std::string_view kPhi3Qkv = "model.layers.{}.self_attn.qkv_proj.weight";
constexpr std::string_view kPhi3GateUp = "model.layers.{}.mlp.gate_up_proj.weight";
constexpr auto kPhi3Tensors = std::to_array<TensorName>({
    {"layers.{}.q.weight", kPhi3Qkv, "blk.{}.attn_qkv.weight", RowsOf::kQkvQ, RowsOf::kQkvQ},
    {"layers.{}.k.weight", kPhi3Qkv, "blk.{}.attn_qkv.weight", RowsOf::kQkvK, RowsOf::kQkvK},
    {"layers.{}.v.weight", kPhi3Qkv, "blk.{}.attn_qkv.weight", RowsOf::kQkvV, RowsOf::kQkvV},
    {"layers.{}.gate.weight", kPhi3GateUp, "blk.{}.ffn_up.weight", RowsOf::kTwoGate,
     RowsOf::kTwoGate},
    {"layers.{}.up.weight", kPhi3GateUp, "blk.{}.ffn_up.weight", RowsOf::kTwoUp, RowsOf::kTwoUp},
});

constexpr auto kLlamaHf = std::to_array<std::string_view>({"LlamaForCausalLM"});
constexpr auto kLlamaGguf = std::to_array<std::string_view>({"llama"});
constexpr auto kMistralHf = std::to_array<std::string_view>({"MistralForCausalLM"});
constexpr auto kMixtralHf = std::to_array<std::string_view>({"MixtralForCausalLM"});
constexpr auto kQwen2Hf = std::to_array<std::string_view>({"Qwen2ForCausalLM"});
constexpr auto kQwen2Gguf = std::to_array<std::string_view>({"qwen2"});
constexpr auto kQwen3Hf = std::to_array<std::string_view>({"Qwen3ForCausalLM"});
constexpr auto kQwen3Gguf = std::to_array<std::string_view>({"qwen3"});
constexpr auto kQwen3MoeHf = std::to_array<std::string_view>({"Qwen3MoeForCausalLM"});
constexpr auto kQwen3MoeGguf = std::to_array<std::string_view>({"qwen3moe"});
constexpr auto kGemma3Hf = std::to_array<std::string_view>({"Gemma3ForCausalLM"});
constexpr auto kGemma3Wrapped = std::to_array<std::string_view>({"Gemma3ForConditionalGeneration"});
constexpr auto kGemma3Prefixes =
    std::to_array<std::string_view>({"language_model.model.", "model.language_model."});
constexpr auto kGemma3Gguf = std::to_array<std::string_view>({"gemma3"});
constexpr auto kPhi3Hf = std::to_array<std::string_view>({"Phi3ForCausalLM"});
constexpr auto kPhi3Gguf = std::to_array<std::string_view>({"phi3"});

// GGUF files of Mistral and Mixtral say "llama".
constexpr auto kArchitectures = std::to_array<Architecture>({
    {.name = "llama",
     .hugging_face = kLlamaHf,
     .gguf = kLlamaGguf,
     .tensors = kDecoderTensors,
     .own_tensors = kLlamaTensors,
     .qkv_bias = Presence::kConfigured,
     .o_bias = Presence::kConfigured,
     .gguf_permutes_qk = true,
     .gguf_experts = true},
    {.name = "mistral",
     .hugging_face = kMistralHf,
     .gguf = {},
     .tensors = kDecoderTensors,
     .windows = WindowRule::kAllLayers,
     .window = 4096},
    {.name = "mixtral",
     .hugging_face = kMixtralHf,
     .gguf = {},
     .tensors = kDecoderTensors,
     .own_tensors = kMixtralTensors,
     .windows = WindowRule::kAllLayers,
     .experts = ExpertRule::kMixtral},
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
    {.name = "qwen3moe",
     .hugging_face = kQwen3MoeHf,
     .gguf = kQwen3MoeGguf,
     .tensors = kDecoderTensors,
     .own_tensors = kQwen3MoeTensors,
     .qkv_bias = Presence::kConfigured,
     .o_bias = Presence::kConfigured,
     .qk_norm = true,
     .windows = WindowRule::kAllIfUsed,
     .experts = ExpertRule::kQwenMoe,
     .gguf_experts = true},
    {.name = "gemma3",
     .hugging_face = kGemma3Hf,
     .gguf = kGemma3Gguf,
     .wrapped_in = kGemma3Wrapped,
     .wrapped_prefixes = kGemma3Prefixes,
     .wrapped_defaults = R"({"vocab_size": 262208, "num_attention_heads": 8,
       "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
       "sliding_window": 4096, "query_pre_attn_scalar": 256})",
     .tensors = kDecoderTensors,
     .own_tensors = kGemma3Tensors,
     .qkv_bias = Presence::kConfigured,
     .o_bias = Presence::kConfigured,
     .qk_norm = true,
     .windows = WindowRule::kPattern,
     .activation = Activation::kGeluTanh,
     .post_norms = true,
     .scales_embedding = true,
     .norms_less_one = true,
     .exceeds_f16 = true,
     .gguf_hidden_scale = 62,
     .theta = 1e6,
     .local_theta = 1e4,
     .window_pattern = 6},
    {.name = "phi3",
     .hugging_face = kPhi3Hf,
     .gguf = kPhi3Gguf,
     .tensors = kDecoderTensors,
     .own_tensors = kPhi3Tensors,
     .windows = WindowRule::kAllLayers,
     .partial_rotary = true,
     .long_rope = true},
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

// Canonical names have the layer in their second part, of an expert's tensor its number in their
// fourth: "layers.12.experts.7.up.weight" is "layers.{}.experts.{}.up.weight" of 12 and 7.
struct Pattern {
  std::string text;
  std::vector<std::string> numbers;
};
Pattern pattern_of(std::string_view canonical) {
  Pattern pattern{std::string(canonical), {}};
  size_t at = 0;
  for (const std::string_view before : {"layers.", ".experts."}) {
    at = pattern.text.find(before, at);
    if (at == std::string::npos) break;
    at += before.size();
    const size_t end = std::min(pattern.text.find('.', at), pattern.text.size());
    pattern.numbers.push_back(pattern.text.substr(at, end - at));
    pattern.text.replace(at, end - at, "{}");
  }
  return pattern;
}

const TensorName* find_name(const Architecture& architecture, const std::string& pattern) {
  for (const auto names : {architecture.own_tensors, architecture.tensors}) {
    for (const TensorName& row : names) {
      if (row.canonical == pattern) return &row;
    }
  }
  return nullptr;
}

TensorPlace place_of(const Architecture& architecture, std::string_view canonical,
                     std::string_view TensorName::*format, RowsOf TensorName::*rows) {
  const Pattern pattern = pattern_of(canonical);
  const TensorName* row = find_name(architecture, pattern.text);
  if (row == nullptr) return {};
  std::string name(row->*format);
  for (const std::string& number : pattern.numbers) {
    if (const auto hole = name.find("{}"); hole != std::string::npos) {
      name.replace(hole, 2, number);
    }
  }
  return {std::move(name), row->*rows};
}

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture& find_hugging_face_architecture(std::span<const std::string> names,
                                                   const std::string& where) {
  for (const Architecture& row : kArchitectures) {
    for (const std::string& name : names) {
      if (contains(row.hugging_face, name) || contains(row.wrapped_in, name)) return row;
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

TensorPlace hugging_face_place(const Architecture& architecture, std::string_view canonical) {
  return place_of(architecture, canonical, &TensorName::hugging_face,
                  &TensorName::hugging_face_rows);
}

TensorPlace gguf_place(const Architecture& architecture, std::string_view canonical) {
  return place_of(architecture, canonical, &TensorName::gguf, &TensorName::gguf_rows);
}

}  // namespace trireme
