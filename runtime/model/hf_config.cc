#include "runtime/model/hf_config.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "base/error.h"
#include "runtime/model/config_check.h"
#include "runtime/model/hf_rope.h"

namespace trireme {
namespace {

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

void refuse_unknown_features(const JsonFields& fields, const Architecture& architecture) {
  const bool gelu = architecture.activation == Activation::kGeluTanh;
  const char* known = gelu ? "gelu_pytorch_tanh" : "silu";
  const char* key = fields.has("hidden_activation") ? "hidden_activation" : "hidden_act";
  const auto activation = fields.string(key).value_or(known);
  if (activation != known && (gelu || activation != "swish")) {
    fail(ErrorCode::kUnimplemented, "{}: field '{}': '{}' is not known for {}; known is {}",
         fields.what(), key, printable(activation), architecture.name, known);
  }
  for (const char* flag : {"mlp_bias", "use_bidirectional_attention"}) {
    if (fields.boolean(flag).value_or(false)) {
      fail(ErrorCode::kUnimplemented, "{}: field '{}': true is not supported", fields.what(), flag);
    }
  }
  for (const char* softcap : {"final_logit_softcapping", "attn_logit_softcapping"}) {
    if (fields.has(softcap)) {
      fail(ErrorCode::kUnimplemented, "{}: field '{}': only null is supported", fields.what(),
           softcap);
    }
  }
}

// The configuration of the language model within a wrapper's; null where the file is of it alone.
Json language_model(const JsonFields& file, const Architecture& architecture,
                    const std::vector<std::string>& names) {
  const auto& wrapped = architecture.wrapped_in;
  const bool is_wrapped = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    return std::find(wrapped.begin(), wrapped.end(), name) != wrapped.end();
  });
  if (!is_wrapped) return nullptr;
  const Json* text = file.find("text_config");
  if (text == nullptr || !text->is_object()) {
    fail(ErrorCode::kDataLoss, "{}: field 'text_config' is missing or not an object", file.what());
  }
  Json merged = Json::parse(architecture.wrapped_defaults);
  for (const auto& [key, value] : text->items()) {
    if (!value.is_null() || !merged.contains(key)) merged[key] = value;
  }
  return merged;
}

bool present(Presence rule, const JsonFields& fields) {
  if (rule == Presence::kConfigured) return fields.boolean("attention_bias").value_or(false);
  return rule == Presence::kAlways;
}

class Parser {
 public:
  Parser(const JsonFields& fields, const Architecture& architecture, int context)
      : fields_(fields), architecture_(architecture), context_(context) {}

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
    if (architecture_.scales_embedding) {
      model_.embedding_scale = std::sqrt(static_cast<float>(model_.hidden));
    }
    model_.bos_id =
        static_cast<int32_t>(fields_.integer("bos_token_id", 0, limits::kId).value_or(-1));
  }

  void read_layers() {
    const int layers = size("num_hidden_layers", limits::kLayers);
    LayerConfig layer;
    layer.qkv_bias = present(architecture_.qkv_bias, fields_);
    layer.o_bias = present(architecture_.o_bias, fields_);
    layer.qk_norm = architecture_.qk_norm;
    layer.post_norms = architecture_.post_norms;
    layer.activation = architecture_.activation;
    const double scalar =
        fields_.number("query_pre_attn_scalar", 1e-3, kLargest).value_or(model_.head_dim);
    layer.attention_scale = 1.0f / std::sqrt(static_cast<float>(scalar));
    model_.layers.assign(static_cast<size_t>(layers), layer);
    read_experts();
    read_layer_types();
    read_windows();
  }

  ExpertConfig expert_config(int64_t experts, int64_t expert_ffn, bool normalize) const {
    ExpertConfig config;
    config.experts = static_cast<int>(experts);
    config.experts_per_token =
        static_cast<int>(fields_.required_integer("num_experts_per_tok", 1, experts));
    config.expert_ffn = static_cast<int>(expert_ffn);
    config.normalize_weights = normalize;
    return config;
  }

  void read_experts() {
    switch (architecture_.experts) {
      case ExpertRule::kNone: return;
      case ExpertRule::kMixtral: {
        const int experts = size("num_local_experts", limits::kExperts);
        for (LayerConfig& layer : model_.layers) {
          layer.experts = expert_config(experts, model_.ffn, true);
        }
        model_.ffn = 0;
        return;
      }
      case ExpertRule::kQwenMoe: return read_qwen_experts();
    }
  }

  // Every decoder_sparse_step-th layer has experts, unless mlp_only_layers names it.
  void read_qwen_experts() {
    const char* key = fields_.has("num_experts") ? "num_experts" : "num_local_experts";
    const int64_t experts = fields_.required_integer(key, 0, limits::kExperts);
    if (experts == 0) return;
    const ExpertConfig config = expert_config(experts, size("moe_intermediate_size", limits::kFfn),
                                              fields_.boolean("norm_topk_prob").value_or(false));
    const int64_t step = fields_.integer("decoder_sparse_step", 1, limits::kLayers).value_or(1);
    std::vector<bool> dense(model_.layers.size(), false);
    const Json* list = fields_.find("mlp_only_layers");
    const Json none = Json::array();
    if (list == nullptr) list = &none;
    for (const Json& item : *list) {
      if (!list->is_array() || !item.is_number_integer() || item.get<int64_t>() < 0) {
        fail(ErrorCode::kDataLoss, "{}: field 'mlp_only_layers' is not a list of layers",
             fields_.what());
      }
      if (item.get<size_t>() < dense.size()) dense[item.get<size_t>()] = true;
    }
    bool any_dense = false;
    for (size_t i = 0; i < dense.size(); ++i) {
      if (dense[i] || (static_cast<int64_t>(i) + 1) % step != 0) {
        any_dense = true;
      } else {
        model_.layers[i].experts = config;
      }
    }
    if (!any_dense) model_.ffn = 0;
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

  // The window of the layers that have one; 0: none has.
  int window() const {
    const bool used = fields_.boolean("use_sliding_window").value_or(false);
    switch (architecture_.windows) {
      case WindowRule::kNone: return 0;
      case WindowRule::kUseSlidingWindow:
      case WindowRule::kAllIfUsed:
        if (!used) return 0;
        break;
      case WindowRule::kAllLayers:
        if (!fields_.names("sliding_window")) {
          return clip_window(architecture_.window, model_.max_context);
        }
        if (!fields_.has("sliding_window")) return 0;
        break;
      case WindowRule::kPattern: break;
    }
    return clip_window(fields_.required_integer("sliding_window", 1, limits::kId),
                       model_.max_context);
  }

  bool has_window(int64_t layer) const {
    if (!layer_types_.empty()) {
      return layer_types_[static_cast<size_t>(layer)] == "sliding_attention";
    }
    if (architecture_.windows == WindowRule::kUseSlidingWindow) {
      return layer >= fields_.required_integer("max_window_layers", 0, limits::kId);
    }
    if (architecture_.windows == WindowRule::kPattern) {
      const int64_t pattern = fields_.integer("sliding_window_pattern", 1, limits::kLayers)
                                  .value_or(architecture_.window_pattern);
      return (layer + 1) % pattern != 0;
    }
    return architecture_.windows != WindowRule::kNone;
  }

  void read_windows() {
    const int size = window();
    for (size_t i = 0; i < model_.layers.size(); ++i) {
      const bool asked =
          size > 0 || !layer_types_.empty() || architecture_.windows == WindowRule::kPattern;
      sliding_.push_back(asked && has_window(static_cast<int64_t>(i)));
      if (sliding_.back()) model_.layers[i].window = size;
    }
  }

  void read_ropes() {
    RopeDefaults defaults;
    defaults.theta = fields_.number("rope_theta", 1.0, kLargest).value_or(architecture_.theta);
    defaults.may_be_partial = architecture_.partial_rotary;
    defaults.may_be_long = architecture_.long_rope;
    defaults.original_context =
        fields_.integer("original_max_position_embeddings", 1, limits::kId).value_or(0);
    defaults.longest_context = model_.max_context;
    defaults.served_context = context_ > 0 ? context_ : model_.max_context;
    if (architecture_.partial_rotary) {
      defaults.partial = fields_.number("partial_rotary_factor", 0.0, 1.0).value_or(1.0);
    }
    RopeDefaults local = defaults;
    if (architecture_.local_theta > 0) {
      local.theta =
          fields_.number("rope_local_base_freq", 1.0, kLargest).value_or(architecture_.local_theta);
    }
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
      const RopeDefaults& own = sliding_[i] ? local : defaults;
      if (nested) {
        const std::string type = sliding_[i] ? "sliding_attention" : "full_attention";
        const Json* values = rope.find(type.c_str());
        if (values == nullptr) {
          fail(ErrorCode::kDataLoss, "{}: nothing for layer type '{}'", rope.what(), type);
        }
        const JsonFields fields(*values, rope.what() + "." + type);
        model_.layers[i].rope = add_rope(model_, parse_rope(fields, own, model_.head_dim));
      } else {
        // What is said once is said of the layers that see everything, where others differ.
        const bool differs = sliding_[i] && architecture_.local_theta > 0;
        const JsonFields fields(differs ? none : *(parameters == nullptr ? &none : parameters),
                                rope.what());
        model_.layers[i].rope = add_rope(model_, parse_rope(fields, own, model_.head_dim));
      }
    }
  }

  const JsonFields& fields_;
  const Architecture& architecture_;
  int context_;
  ModelConfig model_;
  std::vector<std::string> layer_types_;
  std::vector<bool> sliding_;  // layers that have a window, if only one that holds everything
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
                                            const std::string& path, int context) {
  const JsonFields file(config, path);
  HuggingFaceConfig result;
  const auto names = architecture_names(file);
  result.architecture = &find_hugging_face_architecture(names, path);
  refuse_unknown_features(file, *result.architecture);
  result.quantized = parse_quant_scheme(config, path);
  const Json own = language_model(file, *result.architecture, names);
  const JsonFields fields(own.is_null() ? config : own, path);
  if (!own.is_null()) refuse_unknown_features(fields, *result.architecture);
  result.model = Parser(fields, *result.architecture, context).parse();
  result.model.name = file.string("_name_or_path").value_or("");
  result.tied_embeddings = fields.boolean("tie_word_embeddings");
  result.model.tied_embeddings = result.tied_embeddings.value_or(false);
  if (generation != nullptr) {
    result.model.eos_ids = eos_ids(*generation, path + ": generation_config.json");
  }
  for (const Json* one : {&config, &own}) {
    if (one->is_object() && result.model.eos_ids.empty()) {
      result.model.eos_ids = eos_ids(*one, path);
    }
  }
  check_config(result.model, path);
  return result;
}

}  // namespace trireme
