#include "runtime/model/hf_config.h"

#include <cmath>
#include <utility>
#include <vector>

#include "base/error.h"
#include "runtime/model/config_check.h"

namespace trireme {
namespace {

constexpr double kDefaultTheta = 10000.0;
constexpr double kDefaultNormEps = 1e-6;
constexpr double kLargest = 1e12;

std::vector<std::string> architecture_names(const JsonFields& fields) {
  std::vector<std::string> names;
  const Json* list = fields.find("architectures");
  if (list != nullptr && list->is_array()) {
    for (const Json& item : *list) {
      if (item.is_string()) names.push_back(item.get<std::string>());
    }
  }
  if (names.empty()) {
    fail(ErrorCode::kDataLoss, "{}: field 'architectures' is missing or not a list of names",
         fields.what());
  }
  return names;
}

void refuse_unknown_features(const JsonFields& fields) {
  const auto activation = fields.string("hidden_act").value_or("silu");
  if (activation != "silu" && activation != "swish") {
    fail(ErrorCode::kUnimplemented, "{}: field 'hidden_act': '{}' is not known; known is silu",
         fields.what(), printable(activation));
  }
  if (fields.boolean("mlp_bias").value_or(false)) {
    fail(ErrorCode::kUnimplemented, "{}: field 'mlp_bias': true is not supported", fields.what());
  }
}

bool present(Presence rule, const JsonFields& fields) {
  if (rule == Presence::kConfigured) return fields.boolean("attention_bias").value_or(false);
  return rule == Presence::kAlways;
}

// `fields`: rope_parameters of transformers 5, or rope_scaling of 4 with theta from elsewhere.
RopeConfig parse_rope(const JsonFields& fields, double theta, int head_dim) {
  RopeConfig rope;
  rope.rotary_dim = head_dim;
  rope.theta = fields.number("rope_theta", 1.0, kLargest).value_or(theta);
  if (fields.number("partial_rotary_factor", 0.0, 1.0).value_or(1.0) != 1.0) {
    fail(ErrorCode::kUnimplemented, "{}: field 'partial_rotary_factor': only 1 is supported",
         fields.what());
  }
  auto type = fields.string("rope_type");
  if (!type) type = fields.string("type");
  if (!type || *type == "default") return rope;
  if (*type == "linear") {
    rope.scaling = RopeConfig::Scaling::kLinear;
    rope.factor = fields.required_number("factor", 1e-3, kLargest);
  } else if (*type == "llama3") {
    rope.scaling = RopeConfig::Scaling::kLlama3;
    rope.factor = fields.required_number("factor", 1e-3, kLargest);
    rope.low_freq_factor = fields.required_number("low_freq_factor", 1e-3, kLargest);
    rope.high_freq_factor = fields.required_number("high_freq_factor", 1e-3, kLargest);
    rope.original_context =
        fields.required_number("original_max_position_embeddings", 1.0, kLargest);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      fail(ErrorCode::kDataLoss, "{}: field 'high_freq_factor' is not above 'low_freq_factor'",
           fields.what());
    }
  } else {
    fail(ErrorCode::kUnimplemented,
         "{}: rope type '{}' is not known; known are default, linear, llama3", fields.what(),
         printable(*type));
  }
  return rope;
}

class Parser {
 public:
  Parser(const JsonFields& fields, const Architecture& architecture)
      : fields_(fields), architecture_(architecture) {}

  ModelConfig parse() {
    read_sizes();
    read_layers();
    read_ropes();
    check_config(model_, fields_.what());
    return std::move(model_);
  }

 private:
  int size(const char* key, int64_t most) const {
    return static_cast<int>(fields_.required_integer(key, 1, most));
  }

  void read_sizes() {
    model_.architecture = architecture_.name;
    model_.hidden = size("hidden_size", limits::kHidden);
    model_.q_heads = size("num_attention_heads", limits::kHeads);
    model_.kv_heads = static_cast<int>(
        fields_.integer("num_key_value_heads", 1, limits::kHeads).value_or(model_.q_heads));
    const auto head_dim = fields_.integer("head_dim", 1, limits::kHeadDim);
    if (!head_dim && model_.hidden % model_.q_heads != 0) {
      fail(ErrorCode::kDataLoss,
           "{}: field 'head_dim' is missing and hidden_size {} is no multiple of "
           "num_attention_heads {}",
           fields_.what(), model_.hidden, model_.q_heads);
    }
    model_.head_dim = static_cast<int>(head_dim.value_or(model_.hidden / model_.q_heads));
    model_.ffn = size("intermediate_size", limits::kFfn);
    model_.vocab = size("vocab_size", limits::kId);
    model_.max_context = size("max_position_embeddings", limits::kId);
    model_.norm_eps =
        static_cast<float>(fields_.number("rms_norm_eps", 0.0, 1.0).value_or(kDefaultNormEps));
    model_.bos_id =
        static_cast<int32_t>(fields_.integer("bos_token_id", 0, limits::kId).value_or(-1));
  }

  void read_layers() {
    const int layers = size("num_hidden_layers", limits::kLayers);
    LayerConfig layer;
    layer.qkv_bias = present(architecture_.qkv_bias, fields_);
    layer.o_bias = present(architecture_.o_bias, fields_);
    layer.qk_norm = architecture_.qk_norm;
    layer.activation = architecture_.activation;
    layer.attention_scale = 1.0f / std::sqrt(static_cast<float>(model_.head_dim));
    model_.layers.assign(static_cast<size_t>(layers), layer);
    read_layer_types();
    read_windows();
  }

  void read_layer_types() {
    const Json* list = fields_.find("layer_types");
    if (list == nullptr) return;
    if (!list->is_array() || list->size() != model_.layers.size()) {
      fail(ErrorCode::kDataLoss, "{}: field 'layer_types' is not a list of {} names",
           fields_.what(), model_.layers.size());
    }
    for (const Json& item : *list) {
      const std::string type = item.is_string() ? item.get<std::string>() : "";
      const bool sliding = type == "sliding_attention";
      if (type != "full_attention" && (!sliding || architecture_.windows == WindowRule::kNone)) {
        fail(ErrorCode::kUnimplemented, "{}: field 'layer_types': '{}' is not known for {}",
             fields_.what(), printable(type), architecture_.name);
      }
      layer_types_.push_back(type);
    }
  }

  void read_windows() {
    if (architecture_.windows == WindowRule::kNone) return;
    if (!fields_.boolean("use_sliding_window").value_or(false)) return;
    const int window =
        clip_window(fields_.required_integer("sliding_window", 1, limits::kId), model_.max_context);
    const auto layers = static_cast<int64_t>(model_.layers.size());
    const int64_t first =
        layer_types_.empty() ? fields_.required_integer("max_window_layers", 0, limits::kId) : 0;
    for (int64_t i = first; i < layers; ++i) {
      const auto at = static_cast<size_t>(i);
      if (layer_types_.empty() || layer_types_[at] == "sliding_attention") {
        model_.layers[at].window = window;
      }
    }
  }

  void read_ropes() {
    const double theta = fields_.number("rope_theta", 1.0, kLargest).value_or(kDefaultTheta);
    const Json* parameters = fields_.find("rope_parameters");
    const char* key = "rope_parameters";
    if (parameters == nullptr) {
      parameters = fields_.find("rope_scaling");
      key = "rope_scaling";
    }
    const Json none = Json::object();
    const JsonFields rope(parameters == nullptr ? none : *parameters, fields_.what() + ": " + key);
    const bool nested = rope.has("full_attention") || rope.has("sliding_attention");
    for (size_t i = 0; i < model_.layers.size(); ++i) {
      if (nested) {
        const std::string type = layer_types_.empty() ? "full_attention" : layer_types_[i];
        const Json* own = rope.find(type.c_str());
        if (own == nullptr) {
          fail(ErrorCode::kDataLoss, "{}: nothing for layer type '{}'", rope.what(), type);
        }
        const JsonFields fields(*own, rope.what() + "." + type);
        model_.layers[i].rope = add_rope(model_, parse_rope(fields, theta, model_.head_dim));
      } else {
        if (i == 0) add_rope(model_, parse_rope(rope, theta, model_.head_dim));
        model_.layers[i].rope = 0;
      }
    }
  }

  const JsonFields& fields_;
  const Architecture& architecture_;
  ModelConfig model_;
  std::vector<std::string> layer_types_;
};

// One id or a list of ids; an absent field gives none.
std::vector<int32_t> eos_ids(const Json& config, const std::string& what) {
  const JsonFields fields(config, what);
  const Json* value = fields.find("eos_token_id");
  std::vector<int32_t> ids;
  if (value == nullptr) return ids;
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& item : list) {
    if (!item.is_number_integer() || item.get<int64_t>() < 0 || item.get<int64_t>() > limits::kId) {
      fail(ErrorCode::kDataLoss, "{}: field 'eos_token_id' is not a token id or a list of them",
           what);
    }
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

}  // namespace

HuggingFaceConfig parse_hugging_face_config(const Json& config, const Json* generation,
                                            const std::string& path) {
  const JsonFields fields(config, path);
  HuggingFaceConfig result;
  result.architecture = &find_hugging_face_architecture(architecture_names(fields), path);
  refuse_unknown_features(fields);
  result.quantized = parse_quant_scheme(config, path);
  result.model = Parser(fields, *result.architecture).parse();
  result.model.name = fields.string("_name_or_path").value_or("");
  result.tied_embeddings = fields.boolean("tie_word_embeddings");
  result.model.tied_embeddings = result.tied_embeddings.value_or(false);
  if (generation != nullptr) {
    result.model.eos_ids = eos_ids(*generation, path + ": generation_config.json");
  }
  if (result.model.eos_ids.empty()) result.model.eos_ids = eos_ids(config, path);
  check_config(result.model, path);
  return result;
}

}  // namespace trireme
