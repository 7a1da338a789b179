#include "runtime/model/gguf_config.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "runtime/model/config_check.h"
#include "runtime/model/json_file.h"

namespace trireme {
namespace {

class Parser {
 public:
  Parser(const GgufFile& file, const Architecture& architecture, std::string prefix)
      : file_(file), architecture_(architecture), prefix_(std::move(prefix)) {}

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
    if (file_.get_int(key("expert_count")).value_or(0) != 0) {
      fail(ErrorCode::kUnimplemented, "{}: metadata '{}': experts are not supported", file_.path(),
           key("expert_count"));
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
    const GgufTensor* embed = file_.find_tensor(gguf_name(architecture_, "embed.weight"));
    if (embed == nullptr || embed->shape.size() != 2 || embed->shape[0] > limits::kId) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}' is missing or no matrix", file_.path(),
           gguf_name(architecture_, "embed.weight"));
    }
    model_.vocab = embed->shape[0];
    const auto said = integer(key("vocab_size"), 1, limits::kId);
    if (said && *said != model_.vocab) {
      fail(ErrorCode::kDataLoss, "{}: metadata '{}' is {}, but the embedding has {} rows",
           file_.path(), key("vocab_size"), *said, model_.vocab);
    }
    model_.tied_embeddings = !has_tensor("head.weight");
  }

  bool has_tensor(const char* canonical) const {
    return file_.find_tensor(gguf_name(architecture_, canonical)) != nullptr;
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
    layer.activation = architecture_.activation;
    layer.attention_scale = 1.0f / std::sqrt(static_cast<float>(model_.head_dim));
    layer.window = clip_window(integer(key("attention.sliding_window"), 0, limits::kId).value_or(0),
                               model_.max_context);
    layer.rope = add_rope(model_, parse_rope());
    model_.layers.assign(static_cast<size_t>(layers), layer);
  }

  RopeConfig parse_rope() const {
    RopeConfig rope;
    rope.rotary_dim = model_.head_dim;
    rope.theta = number(key("rope.freq_base"), 1.0, 1e12, 10000.0);
    const auto dims = integer(key("rope.dimension_count"), 1, limits::kHeadDim);
    if (dims.value_or(model_.head_dim) != model_.head_dim) {
      fail(ErrorCode::kUnimplemented,
           "{}: metadata '{}' is {}: rotating a part of a head is not "
           "supported",
           file_.path(), key("rope.dimension_count"), *dims);
    }
    const std::string type = file_.get_string(key("rope.scaling.type")).value_or("none");
    if (type == "linear") {
      rope.scaling = RopeConfig::Scaling::kLinear;
      if (!file_.has(key("rope.scaling.factor"))) {
        fail(ErrorCode::kDataLoss, "{}: metadata '{}' is missing", file_.path(),
             key("rope.scaling.factor"));
      }
      rope.factor = number(key("rope.scaling.factor"), 1e-3, 1e12, 1.0);
    } else if (type != "none") {
      fail(ErrorCode::kUnimplemented,
           "{}: rope type '{}' is not known; known are none, linear and "
           "rope_freqs.weight",
           file_.path(), printable(type));
    }
    read_factors(rope);
    return rope;
  }

  void read_factors(RopeConfig& rope) const {
    const GgufTensor* tensor = file_.find_tensor("rope_freqs.weight");
    if (tensor == nullptr) return;
    const auto half = static_cast<size_t>(rope.rotary_dim / 2);
    if (tensor->format != QuantFormat::kF32 || tensor->bytes.size() != half * sizeof(float)) {
      fail(ErrorCode::kDataLoss, "{}: tensor 'rope_freqs.weight' is not {} float32 numbers",
           file_.path(), half);
    }
    if (rope.scaling != RopeConfig::Scaling::kNone) {
      fail(ErrorCode::kUnimplemented, "{}: both rope_freqs.weight and a rope scaling type",
           file_.path());
    }
    rope.scaling = RopeConfig::Scaling::kFactors;
    rope.factors.resize(half);
    std::memcpy(rope.factors.data(), tensor->bytes.data(), tensor->bytes.size());
    for (const float factor : rope.factors) {
      if (!(factor > 0.0f) || !std::isfinite(factor)) {
        fail(ErrorCode::kDataLoss, "{}: tensor 'rope_freqs.weight' holds {}", file_.path(), factor);
      }
    }
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
  ModelConfig model_;
};

}  // namespace

GgufConfig parse_gguf_config(const GgufFile& file) {
  const auto name = file.get_string("general.architecture");
  if (!name) {
    fail(ErrorCode::kDataLoss, "{}: metadata 'general.architecture' is missing", file.path());
  }
  GgufConfig config;
  config.architecture = &find_gguf_architecture(*name, file.path());
  config.model = Parser(file, *config.architecture, *name).parse();
  return config;
}

}  // namespace trireme
