#include "runtime/model/gguf_config.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "runtime/model/config_check.h"
#include "runtime/model/json_file.h"
#include "runtime/model/model_tensors.h"

namespace trireme {
namespace {

constexpr const char* kFactors = "rope_freqs.weight";
constexpr const char* kShortFactors = "rope_factors_short.weight";
constexpr const char* kLongFactors = "rope_factors_long.weight";

class Parser {
 public:
  Parser(const GgufFile& file, const Architecture& architecture, std::string prefix, int context)
      : file_(file), architecture_(architecture), prefix_(std::move(prefix)), context_(context) {}

  ModelConfig parse() {
    refuse_unknown_features();
    read_sizes();
    read_layers();
    read_tokens();
    check_config(model_, file_.path());
    return std::move(model_);
  }

 private:
  std::string key(const char* name) const { return prefix_ + "." + name; }

  std::optional<int64_t> integer(const std::string& key, int64_t low, int64_t high) const {
    const auto value = file_.get_int(key);
    if (value && (*value < low || *value > high)) {
      fail(ErrorCode::kDataLoss, "{}: metadata '{}' is {}, outside [{}, {}]", file_.path(), key,
           *value, low, high);
    }
    return value;
  }

  int size(const char* name, int64_t high) const {
    const auto value = integer(key(name), 1, high);
    if (!value) fail(ErrorCode::kDataLoss, "{}: metadata '{}' is missing", file_.path(), key(name));
    return static_cast<int>(*value);
  }

  double number(const std::string& key, double low, double high, double otherwise) const {
    const double value = file_.get_number(key).value_or(otherwise);
    if (!(value >= low && value <= high)) {
      fail(ErrorCode::kDataLoss, "{}: metadata '{}' is {}, outside [{}, {}]", file_.path(), key,
           value, low, high);
    }
    return value;
  }

  void refuse_unknown_features() const {
    for (const char* name :
         {"attention.head_count", "attention.head_count_kv", "feed_forward_length"}) {
      const GgufValue* value = file_.find(key(name));
      if (value != nullptr && value->type == GgufType::kArray) {
        fail(ErrorCode::kUnimplemented,
             "{}: metadata '{}': sizes that differ by layer are not "
             "supported",
             file_.path(), key(name));
      }
    }
    const auto refuse = [this](const char* name, int64_t usual) {
      if (file_.get_int(key(name)).value_or(usual) == usual) return;
      fail(ErrorCode::kUnimplemented, "{}: metadata '{}': only {} is supported", file_.path(),
           key(name), usual);
    };
    if (!architecture_.gguf_experts) refuse("expert_count", 0);
    refuse("expert_shared_count", 0);
    if (file_.has(key("expert_gating_func"))) refuse("expert_gating_func", 1);  // softmax
    for (const char* name : {"attn_logit_softcapping", "final_logit_softcapping"}) {
      if (file_.get_number(key(name)).value_or(0.0) == 0.0) continue;
      fail(ErrorCode::kUnimplemented, "{}: metadata '{}': a softcap is not supported", file_.path(),
           key(name));
    }
  }

  void read_sizes() {
    model_.architecture = architecture_.name;
    model_.name = printable(file_.get_string("general.name").value_or(""));
    model_.hidden = size("embedding_length", limits::kHidden);
    model_.q_heads = size("attention.head_count", limits::kHeads);
    model_.kv_heads = static_cast<int>(
        integer(key("attention.head_count_kv"), 1, limits::kHeads).value_or(model_.q_heads));
    read_head_dim();
    model_.ffn = size("feed_forward_length", limits::kFfn);
    model_.max_context = size("context_length", limits::kId);
    const std::string eps = key("attention.layer_norm_rms_epsilon");
    if (!file_.has(eps))
      fail(ErrorCode::kDataLoss, "{}: metadata '{}' is missing", file_.path(), eps);
    model_.norm_eps = static_cast<float>(number(eps, 0.0, 1.0, 0.0));
    read_vocab();
  }

  void read_head_dim() {
    const auto key_length = integer(key("attention.key_length"), 1, limits::kHeadDim);
    const auto value_length = integer(key("attention.value_length"), 1, limits::kHeadDim);
    if (!key_length && model_.hidden % model_.q_heads != 0) {
      fail(ErrorCode::kDataLoss, "{}: metadata '{}' is missing and {} is no multiple of {} heads",
           file_.path(), key("attention.key_length"), model_.hidden, model_.q_heads);
    }
    model_.head_dim = static_cast<int>(key_length.value_or(model_.hidden / model_.q_heads));
    if (value_length.value_or(model_.head_dim) != model_.head_dim) {
      fail(ErrorCode::kUnimplemented, "{}: metadata '{}' is {}, other than the key length {}",
           file_.path(), key("attention.value_length"), *value_length, model_.head_dim);
    }
  }

  // The embedding's rows say it in every file; metadata only confirms it.
  void read_vocab() {
    const std::string name = gguf_place(architecture_, "embed.weight").name;
    const GgufTensor* embed = file_.find_tensor(name);
    if (embed == nullptr || embed->shape.size() != 2 || embed->shape[0] > limits::kId) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}' is missing or no matrix", file_.path(), name);
    }
    model_.vocab = embed->shape[0];
    const auto said = integer(key("vocab_size"), 1, limits::kId);
    if (said && *said != model_.vocab) {
      fail(ErrorCode::kDataLoss, "{}: metadata '{}' is {}, but the embedding has {} rows",
           file_.path(), key("vocab_size"), *said, model_.vocab);
    }
    model_.tied_embeddings = !has_tensor("head.weight");
  }

  bool has_tensor(const std::string& canonical) const {
    return file_.find_tensor(gguf_place(architecture_, canonical).name) != nullptr;
  }

  bool present(Presence rule, const char* canonical) const {
    return rule == Presence::kAlways || (rule == Presence::kConfigured && has_tensor(canonical));
  }

  void read_layers() {
    const int layers = size("block_count", limits::kLayers);
    LayerConfig layer;
    layer.qkv_bias = present(architecture_.qkv_bias, "layers.0.q.bias");
    layer.o_bias = present(architecture_.o_bias, "layers.0.o.bias");
    layer.qk_norm = architecture_.qk_norm;
    layer.post_norms = architecture_.post_norms;
    layer.activation = architecture_.activation;
    layer.attention_scale = attention_scale(layers);
    model_.layers.assign(static_cast<size_t>(layers), layer);
    if (architecture_.scales_embedding) {
      model_.embedding_scale = std::sqrt(static_cast<float>(model_.hidden));
    }
    read_windows();
    read_experts();
  }

  // Layers that have a router have experts.
  void read_experts() {
    const auto experts = integer(key("expert_count"), 0, limits::kExperts).value_or(0);
    if (experts == 0) return;
    ExpertConfig config;
    config.experts = static_cast<int>(experts);
    config.experts_per_token = size("expert_used_count", experts);
    config.expert_ffn = static_cast<int>(
        integer(key("expert_feed_forward_length"), 1, limits::kFfn).value_or(model_.ffn));
    config.normalize_weights = file_.get_bool(key("expert_weights_norm")).value_or(true);
    bool any_dense = false;
    for (size_t i = 0; i < model_.layers.size(); ++i) {
      if (has_tensor(layer_tensor(static_cast<int>(i), "router.weight"))) {
        model_.layers[i].experts = config;
      } else {
        any_dense = true;
      }
    }
    if (!any_dense) model_.ffn = 0;
  }

  float attention_scale(int layers) const {
    const double width = layers == architecture_.gguf_hidden_scale
                             ? static_cast<double>(model_.hidden) / model_.q_heads
                             : model_.head_dim;
    const double scale = number(key("attention.scale"), 0.0, 1e6, 0.0);
    return scale > 0 ? static_cast<float>(scale) : 1.0f / std::sqrt(static_cast<float>(width));
  }

  // Which layers have a window, and how each rotates.
  void read_windows() {
    const bool pattern = architecture_.windows == WindowRule::kPattern;
    const auto window = integer(key("attention.sliding_window"), 0, limits::kId);
    if (pattern && !window) {
      fail(ErrorCode::kDataLoss, "{}: metadata '{}' is missing", file_.path(),
           key("attention.sliding_window"));
    }
    int64_t every = architecture_.window_pattern;
    if (pattern) {
      const GgufValue* said = file_.find(key("attention.sliding_window_pattern"));
      if (said != nullptr && said->type == GgufType::kArray) {
        fail(ErrorCode::kUnimplemented, "{}: metadata '{}': a list is not supported", file_.path(),
             key("attention.sliding_window_pattern"));
      }
      every = integer(key("attention.sliding_window_pattern"), 1, limits::kLayers).value_or(every);
    }
    const RopeConfig rope = parse_rope();
    RopeConfig local = rope;
    if (architecture_.local_theta > 0) {
      local = {};
      local.rotary_dim = rope.rotary_dim;
      local.theta = number(key("rope.freq_base_swa"), 1.0, 1e12, architecture_.local_theta);
    }
    for (size_t i = 0; i < model_.layers.size(); ++i) {
      const bool sliding = !pattern || (static_cast<int64_t>(i) + 1) % every != 0;
      if (sliding) model_.layers[i].window = clip_window(window.value_or(0), model_.max_context);
      model_.layers[i].rope = add_rope(model_, sliding && pattern ? local : rope);
    }
  }

  RopeConfig parse_rope() const {
    RopeConfig rope;
    rope.theta = number(key("rope.freq_base"), 1.0, 1e12, architecture_.theta);
    rope.rotary_dim = static_cast<int>(
        integer(key("rope.dimension_count"), 1, limits::kHeadDim).value_or(model_.head_dim));
    if (rope.rotary_dim > model_.head_dim || rope.rotary_dim % 2 != 0) {
      fail(ErrorCode::kDataLoss, "{}: metadata '{}' is {}, a head has {}", file_.path(),
           key("rope.dimension_count"), rope.rotary_dim, model_.head_dim);
    }
    if (rope.rotary_dim != model_.head_dim && !architecture_.partial_rotary) {
      fail(ErrorCode::kUnimplemented,
           "{}: metadata '{}' is {}: rotating a part of a head is not "
           "supported for {}",
           file_.path(), key("rope.dimension_count"), rope.rotary_dim, architecture_.name);
    }
    const bool is_long = file_.find_tensor(kLongFactors) != nullptr;
    const std::string type = file_.get_string(key("rope.scaling.type")).value_or("none");
    if (type == "linear") {
      rope.scaling = RopeConfig::Scaling::kLinear;
      if (!file_.has(key("rope.scaling.factor"))) {
        fail(ErrorCode::kDataLoss, "{}: metadata '{}' is missing", file_.path(),
             key("rope.scaling.factor"));
      }
      rope.factor = number(key("rope.scaling.factor"), 1e-3, 1e12, 1.0);
    } else if (is_long && !architecture_.long_rope) {
      fail(ErrorCode::kUnimplemented, "{}: tensor '{}': rope type 'longrope' is not known for {}",
           file_.path(), kLongFactors, architecture_.name);
    } else if (is_long) {
      read_long_factors(rope);
      return rope;
    } else if (type != "none") {
      fail(ErrorCode::kUnimplemented,
           "{}: rope type '{}' is not known; known are none, linear and "
           "rope_freqs.weight",
           file_.path(), printable(type));
    }
    read_factors(rope);
    return rope;
  }

  std::vector<float> rope_factors(const char* name, int rotary_dim) const {
    const GgufTensor* tensor = file_.find_tensor(name);
    const auto half = static_cast<size_t>(rotary_dim / 2);
    if (tensor == nullptr || tensor->format != QuantFormat::kF32 ||
        tensor->bytes.size() != half * sizeof(float)) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}' is not {} float32 numbers", file_.path(), name,
           half);
    }
    std::vector<float> factors(half);
    std::memcpy(factors.data(), tensor->bytes.data(), tensor->bytes.size());
    for (const float factor : factors) {
      if (!(factor > 0.0f) || !std::isfinite(factor)) {
        fail(ErrorCode::kDataLoss, "{}: tensor '{}' holds {}", file_.path(), name, factor);
      }
    }
    return factors;
  }

  void read_factors(RopeConfig& rope) const {
    if (file_.find_tensor(kFactors) == nullptr) return;
    if (rope.scaling != RopeConfig::Scaling::kNone) {
      fail(ErrorCode::kUnimplemented, "{}: both {} and a rope scaling type", file_.path(),
           kFactors);
    }
    rope.scaling = RopeConfig::Scaling::kFactors;
    rope.factors = rope_factors(kFactors, rope.rotary_dim);
  }

  void read_long_factors(RopeConfig& rope) const {
    const auto original = integer(key("rope.scaling.original_context_length"), 2, limits::kId);
    if (!original) {
      fail(ErrorCode::kDataLoss, "{}: metadata '{}' is missing", file_.path(),
           key("rope.scaling.original_context_length"));
    }
    const double ratio = static_cast<double>(model_.max_context) / static_cast<double>(*original);
    const float magnitude = long_rope_magnitude(ratio, static_cast<double>(*original));
    rope.magnitude = static_cast<float>(
        number(key("rope.scaling.attn_factor"), 0.0, 1e12, static_cast<double>(magnitude)));
    auto shorter = rope_factors(kShortFactors, rope.rotary_dim);
    set_long_rope(rope, std::move(shorter), rope_factors(kLongFactors, rope.rotary_dim), *original,
                  context_ > 0 ? context_ : model_.max_context);
  }

  void read_tokens() {
    for (const char* name : {"eos", "eot", "eom"}) {
      const auto id = integer(std::string("tokenizer.ggml.") + name + "_token_id", 0, limits::kId);
      auto& ids = model_.eos_ids;
      if (id && std::find(ids.begin(), ids.end(), *id) == ids.end()) {
        ids.push_back(static_cast<int32_t>(*id));
      }
    }
    model_.bos_id =
        static_cast<int32_t>(integer("tokenizer.ggml.bos_token_id", 0, limits::kId).value_or(-1));
  }

  const GgufFile& file_;
  const Architecture& architecture_;
  std::string prefix_;
  int context_;
  ModelConfig model_;
};

}  // namespace

GgufConfig parse_gguf_config(const GgufFile& file, int context) {
  const auto name = file.get_string("general.architecture");
  if (!name) {
    fail(ErrorCode::kDataLoss, "{}: metadata 'general.architecture' is missing", file.path());
  }
  GgufConfig config;
  config.architecture = &find_gguf_architecture(*name, file.path());
  config.model = Parser(file, *config.architecture, *name, context).parse();
  return config;
}

}  // namespace trireme
