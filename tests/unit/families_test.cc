// What sets the architectures apart, as config.json (of transformers 4 and 5) and GGUF metadata say
// it, and what of it is refused by name.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/thread_pool.h"
#include "runtime/model/hf_config.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/stage_costs.h"
#include "runtime/model/weight_source.h"
#include "tests/support/errors.h"
#include "tests/support/model_files.h"
#include "tests/support/model_fixture.h"

namespace trireme {
namespace {

Json config_of(const char* architecture) {
  return {{"architectures", {architecture}},
          {"hidden_size", 64},
          {"intermediate_size", 160},
          {"num_attention_heads", 8},
          {"num_key_value_heads", 2},
          {"num_hidden_layers", 7},
          {"vocab_size", 1000},
          {"max_position_embeddings", 2048},
          {"rms_norm_eps", 1e-5},
          {"tie_word_embeddings", true}};
}

ModelConfig parse(const Json& config) {
  return parse_hugging_face_config(config, nullptr, "dir/config.json").model;
}

void expect_refused(const Json& config, const std::string& part,
                    ErrorCode code = ErrorCode::kUnimplemented) {
  const Error error = error_of([&] { parse(config); });
  EXPECT_EQ(error.code(), code) << error.what();
  EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
      << error.what() << "\n  should say: " << part;
}

std::vector<int> windows_of(const ModelConfig& model) {
  std::vector<int> windows;
  for (const LayerConfig& layer : model.layers) windows.push_back(layer.window);
  return windows;
}

// Of which layers experts are.
std::vector<bool> experts_of(const ModelConfig& model) {
  std::vector<bool> experts;
  for (const LayerConfig& layer : model.layers) experts.push_back(layer.experts.experts > 0);
  return experts;
}

TEST(Mistral, WindowOfAllLayersOrNone) {
  Json config = config_of("MistralForCausalLM");
  config["max_position_embeddings"] = 32768;
  EXPECT_EQ(windows_of(parse(config)), std::vector<int>(7, 4096));  // as transformers has it
  config["sliding_window"] = nullptr;
  EXPECT_EQ(windows_of(parse(config)), std::vector<int>(7, 0));
  config["sliding_window"] = 128;
  EXPECT_EQ(windows_of(parse(config)), std::vector<int>(7, 128));
  EXPECT_EQ(kv_groups(parse(config)).windows, std::vector<int>{128});
  config["sliding_window"] = 32768;  // holds the context
  EXPECT_EQ(windows_of(parse(config)), std::vector<int>(7, 0));
  config["sliding_window"] = 0;
  expect_refused(config, "'sliding_window'", ErrorCode::kDataLoss);
}

TEST(Gemma3, PatternOfTransformers4) {
  Json config = config_of("Gemma3ForCausalLM");
  config["head_dim"] = 32;
  config["hidden_activation"] = "gelu_pytorch_tanh";
  config["query_pre_attn_scalar"] = 144;
  config["sliding_window"] = 512;
  config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 8.0}};
  config["attn_logit_softcapping"] = nullptr;
  ModelConfig model = parse(config);
  EXPECT_EQ(windows_of(model), (std::vector<int>{512, 512, 512, 512, 512, 0, 512}));
  EXPECT_EQ(kv_groups(model).windows, (std::vector<int>{512, 0}));
  EXPECT_FLOAT_EQ(model.embedding_scale, 8.0f);
  const LayerConfig& local = model.layers[0];
  const LayerConfig& global = model.layers[5];
  EXPECT_TRUE(local.post_norms && local.qk_norm && global.post_norms);
  EXPECT_EQ(local.activation, Activation::kGeluTanh);
  EXPECT_FLOAT_EQ(local.attention_scale, 1.0f / 12);
  ASSERT_EQ(model.ropes.size(), 2u);
  const RopeConfig& local_rope = model.ropes[static_cast<size_t>(local.rope)];
  const RopeConfig& global_rope = model.ropes[static_cast<size_t>(global.rope)];
  EXPECT_EQ(local_rope.theta, 1e4);
  EXPECT_EQ(local_rope.scaling, RopeConfig::Scaling::kNone);
  EXPECT_EQ(global_rope.theta, 1e6);
  EXPECT_EQ(global_rope.scaling, RopeConfig::Scaling::kLinear);
  EXPECT_EQ(global_rope.factor, 8.0);
  config["sliding_window_pattern"] = 2;
  config["rope_theta"] = 3e5;
  config["rope_local_base_freq"] = 2e4;
  model = parse(config);
  EXPECT_EQ(windows_of(model), (std::vector<int>{512, 0, 512, 0, 512, 0, 512}));
  EXPECT_EQ(model.ropes[static_cast<size_t>(model.layers[0].rope)].theta, 2e4);
  EXPECT_EQ(model.ropes[static_cast<size_t>(model.layers[1].rope)].theta, 3e5);
  // Which rope a layer has does not hang on whether its window cuts anything off.
  config["sliding_window"] = 4096;
  model = parse(config);
  EXPECT_EQ(windows_of(model), std::vector<int>(7, 0));
  EXPECT_EQ(model.ropes[static_cast<size_t>(model.layers[0].rope)].theta, 2e4);
}

TEST(Gemma3, OtherVariantsAreRefusedByName) {
  Json config = config_of("Gemma3ForCausalLM");
  config["sliding_window"] = 512;
  parse(config);
  for (const char* key : {"final_logit_softcapping", "attn_logit_softcapping"}) {
    Json other = config;
    other[key] = 30.0;
    expect_refused(other, key);
  }
  Json other = config;
  other["use_bidirectional_attention"] = true;
  expect_refused(other, "use_bidirectional_attention");
  other = config;
  other["hidden_activation"] = "gelu";
  expect_refused(other, "'gelu' is not known for gemma3; known is gelu_pytorch_tanh");
  other = config;
  other.erase("sliding_window");
  expect_refused(other, "'sliding_window' is missing", ErrorCode::kDataLoss);
  other = config;
  other["layer_types"] = std::vector<std::string>(7, "chunked_attention");
  expect_refused(other, "'chunked_attention' is not known for gemma3");
}

// The language model of a checkpoint that sees pictures too, by both of the names that its tensors
// have had.
TEST(Gemma3, WithinAWrapper) {
  const std::string folder = fixture_model(TRIREME_FIXTURES, "gemma3").path;
  const auto plain = open_model(folder);
  std::ifstream in(folder + "/model.safetensors", std::ios::binary);
  const std::string file{std::istreambuf_iterator<char>(in), {}};
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  for (const std::string prefix : {"language_model.model.", "model.language_model."}) {
    const Json stored = Json::parse(file.substr(8, length));
    Json header;
    for (const auto& [name, value] : stored.items()) {
      const bool renamed = name.starts_with("model.");
      header[renamed ? prefix + name.substr(6) : name] = value;
    }
    const TempDirectory directory;
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data are aligned
    directory.write("model.safetensors", Bytes().string(text).text() + file.substr(8 + length));
    Json config = {{"architectures", {"Gemma3ForConditionalGeneration"}},
                   {"eos_token_id", {1, 106}},
                   {"vision_config", {{"hidden_size", 1152}}},
                   {"text_config", read_json_file(folder + "/config.json")}};
    directory.write("config.json", config.dump());
    const auto wrapped = open_model(directory.path());
    EXPECT_EQ(wrapped->config().layers, plain->config().layers);
    EXPECT_EQ(wrapped->config().ropes, plain->config().ropes);
    EXPECT_EQ(wrapped->config().tied_embeddings, true);
    EXPECT_EQ(wrapped->config().eos_ids, (std::vector<int32_t>{1, 106}));
    ASSERT_EQ(wrapped->tensors().size(), plain->tensors().size());
    for (const SourceTensor& tensor : plain->tensors()) {
      const auto other = wrapped->find(tensor.name);
      ASSERT_TRUE(other) << tensor.name;
      EXPECT_EQ(
          std::memcmp(tensor.data, other->data, static_cast<size_t>(tensor.rows * tensor.cols) * 4),
          0);
    }
    config.erase("text_config");
    directory.write("config.json", config.dump());
    const Error error = error_of([&] { open_model(directory.path()); });
    EXPECT_NE(std::string(error.what()).find("'text_config'"), std::string::npos) << error.what();
  }
  // What transformers does not write, since it is its default.
  Json text = {{"hidden_size", 64}, {"intermediate_size", 128}, {"num_hidden_layers", 2}};
  text["head_dim"] = nullptr;
  const Json config = {{"architectures", {"Gemma3ForConditionalGeneration"}},
                       {"text_config", text}};
  const ModelConfig model = parse(config);
  EXPECT_EQ(model.q_heads, 8);
  EXPECT_EQ(model.head_dim, 256);
  EXPECT_EQ(model.layers[0].window, 4096);
  EXPECT_FLOAT_EQ(model.layers[0].attention_scale, 1.0f / 16);
}

TEST(Phi3, PartialRotaryAndWindow) {
  Json config = config_of("Phi3ForCausalLM");
  EXPECT_EQ(parse(config).ropes[0].rotary_dim, 8);
  EXPECT_EQ(windows_of(parse(config)), std::vector<int>(7, 0));
  config["sliding_window"] = 100;
  config["partial_rotary_factor"] = 0.75;
  config["hidden_size"] = 128;
  EXPECT_EQ(parse(config).ropes[0].rotary_dim, 12);
  EXPECT_EQ(windows_of(parse(config)), std::vector<int>(7, 100));
  config.erase("partial_rotary_factor");
  config["rope_parameters"] = {{"rope_type", "default"}, {"partial_rotary_factor", 0.25}};
  EXPECT_EQ(parse(config).ropes[0].rotary_dim, 4);
  config["rope_parameters"] = {{"rope_type", "default"}, {"partial_rotary_factor", 0.2}};
  expect_refused(config, "'partial_rotary_factor'", ErrorCode::kDataLoss);  // 3 of 16
}

// Short or long is chosen once, by the context that the model is served with.
TEST(Phi3, LongRope) {
  Json config = config_of("Phi3ForCausalLM");
  config["original_max_position_embeddings"] = 256;
  config["rope_scaling"] = {
      {"type", "longrope"}, {"short_factor", {1.0, 1.5, 2.0, 2.5}}, {"long_factor", {1, 3, 5, 7}}};
  const auto served = [&](int context) {
    return parse_hugging_face_config(config, nullptr, "dir/config.json", context).model.ropes[0];
  };
  const std::vector<float> longer{1, 3, 5, 7}, shorter{1, 1.5, 2, 2.5};
  EXPECT_EQ(served(0).factors, longer);  // the model's own 2048
  EXPECT_EQ(served(257).factors, longer);
  EXPECT_EQ(served(256).factors, shorter);
  for (const int context : {0, 256}) {
    EXPECT_FLOAT_EQ(served(context).magnitude, std::sqrt(1 + std::log(8.0f) / std::log(256.0f)));
  }
  RopeConfig plain = served(0);
  plain.scaling = RopeConfig::Scaling::kNone;
  const auto frequencies = inverse_frequencies(served(0));
  ASSERT_EQ(frequencies.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_FLOAT_EQ(frequencies[i], inverse_frequencies(plain)[i] / longer[i]);
  }
  config["rope_scaling"]["attention_factor"] = 1.5;
  EXPECT_FLOAT_EQ(served(0).magnitude, 1.5f);
  config["rope_scaling"]["type"] = "yarn";
  expect_refused(config, "'yarn' is not known; known are default, linear, llama3, longrope");
  config["rope_scaling"]["type"] = "su";
  EXPECT_EQ(served(0).factors, longer);
  config["rope_scaling"]["long_factor"] = {1, 3, 5};
  expect_refused(config, "'long_factor' is not a list of 4 positive", ErrorCode::kDataLoss);
  config["rope_scaling"]["long_factor"] = {1, 3, 5, 0};
  expect_refused(config, "'long_factor'", ErrorCode::kDataLoss);
  config.erase("original_max_position_embeddings");
  expect_refused(config, "'original_max_position_embeddings'", ErrorCode::kDataLoss);
}

TEST(Mixtral, AllLayersHaveExperts) {
  Json config = config_of("MixtralForCausalLM");
  config["num_local_experts"] = 8;
  config["num_experts_per_tok"] = 2;
  const ModelConfig model = parse(config);
  EXPECT_EQ(experts_of(model), std::vector<bool>(7, true));
  EXPECT_EQ(model.experts(), (ExpertConfig{8, 2, 160, true}));
  EXPECT_EQ(model.ffn, 0);
  EXPECT_EQ(windows_of(model), std::vector<int>(7, 0));
  config["num_experts_per_tok"] = 9;
  expect_refused(config, "'num_experts_per_tok'", ErrorCode::kDataLoss);
  config["num_experts_per_tok"] = 8;
  config["num_local_experts"] = 4096;
  config["num_hidden_layers"] = 65;  // refused before anything is made for each of them
  expect_refused(config, "266240 experts", ErrorCode::kDataLoss);
  config["num_local_experts"] = 4097;
  expect_refused(config, "'num_local_experts'", ErrorCode::kDataLoss);
  config.erase("num_local_experts");
  expect_refused(config, "'num_local_experts' is missing", ErrorCode::kDataLoss);
}

TEST(Qwen3Moe, DenseLayersAreThoseThatTheConfigurationNames) {
  Json config = config_of("Qwen3MoeForCausalLM");
  config["num_experts"] = 16;
  config["num_experts_per_tok"] = 4;
  config["moe_intermediate_size"] = 24;
  ModelConfig model = parse(config);
  EXPECT_EQ(experts_of(model), std::vector<bool>(7, true));
  EXPECT_EQ(model.experts(), (ExpertConfig{16, 4, 24, false}));
  EXPECT_EQ(model.ffn, 0);
  EXPECT_TRUE(model.layers[0].qk_norm);
  config["norm_topk_prob"] = true;
  config["decoder_sparse_step"] = 2;
  config["mlp_only_layers"] = {3, 99};
  model = parse(config);
  EXPECT_EQ(experts_of(model), (std::vector<bool>{0, 1, 0, 0, 0, 1, 0}));
  EXPECT_TRUE(model.experts().normalize_weights);
  EXPECT_EQ(model.ffn, 160);
  // Their windows are all or none, whatever max_window_layers says.
  config["sliding_window"] = 64;
  config["max_window_layers"] = 5;
  EXPECT_EQ(windows_of(parse(config)), std::vector<int>(7, 0));
  config["use_sliding_window"] = true;
  EXPECT_EQ(windows_of(parse(config)), std::vector<int>(7, 64));
  config["mlp_only_layers"] = {-1};
  expect_refused(config, "'mlp_only_layers'", ErrorCode::kDataLoss);
  config["mlp_only_layers"] = "x";
  expect_refused(config, "'mlp_only_layers'", ErrorCode::kDataLoss);
  config["mlp_only_layers"] = nullptr;
  config["num_experts"] = 0;
  EXPECT_EQ(experts_of(parse(config)), std::vector<bool>(7, false));
  config.erase("num_experts");
  expect_refused(config, "num_local_experts", ErrorCode::kDataLoss);
}

TEST(Experts, CostWhatIsReadOfThem) {
  const ExpertConfig eight{8, 2, 0, true};
  EXPECT_DOUBLE_EQ(experts_read(eight, 1), 2);
  EXPECT_DOUBLE_EQ(experts_read(eight, 2), 3.5);  // the second token's two: 3/4 are new
  EXPECT_NEAR(experts_read(eight, 1000), 8, 1e-9);
  // Layers 1 and 3 have 6 experts of 24 where the others have a feed-forward of 72.
  const auto source = open_model(fixture_model(TRIREME_FIXTURES, "qwen3moe-mixed").path);
  ThreadPool pool(1);
  const auto backend = make_cpu_backend(pool, CpuIsa::kReference);
  const StageCosts costs = stage_costs(*source, *backend);
  ASSERT_EQ(costs.layers.size(), 5u);
  EXPECT_EQ(costs.layers[1], costs.layers[3]);
  EXPECT_EQ(costs.layers[0], costs.layers[2]);
  const double matrices = 3 * 48 * 4;  // bytes of a row of gate, up and down
  const double more = matrices * (experts_read({6, 2, 24, true}, 16) * 24 - 72);
  const double router = 6 * 48 * 4;
  const double activations = 16.0 * 4 * 4 * (2 * (24 + 48) - 72);
  EXPECT_NEAR(costs.layers[1] - costs.layers[0], more + router + activations, 1);
}

TEST(Families, UnknownOnesAreRefusedWithTheList) {
  for (const char* name : {"GptOssForCausalLM", "Gemma2ForCausalLM", "Qwen2MoeForCausalLM",
                           "Gemma3nForConditionalGeneration", "MinistralForCausalLM"}) {
    expect_refused(config_of(name), std::string("'") + name + "' is not known");
  }
  expect_refused(config_of("X"),
                 "LlamaForCausalLM, MistralForCausalLM, MixtralForCausalLM, Qwen2ForCausalLM, "
                 "Qwen3ForCausalLM, Qwen3MoeForCausalLM, Gemma3ForCausalLM, Phi3ForCausalLM");
}

// config.json as transformers 4 and as 5 writes it.
TEST(Families, BothStylesOfConfigurationAreOne) {
  int compared = 0;
  for (const FixtureEntry& entry : fixture_models(TRIREME_FIXTURES)) {
    for (const char* other : {"/config.v4.json", "/config.v5.json"}) {
      if (!std::filesystem::exists(entry.path + other)) continue;
      const ModelConfig a = parse(read_json_file(entry.path + "/config.json"));
      const ModelConfig b = parse(read_json_file(entry.path + other));
      EXPECT_EQ(a.layers, b.layers) << entry.name;
      EXPECT_EQ(a.ropes, b.ropes) << entry.name;
      EXPECT_EQ(a.embedding_scale, b.embedding_scale) << entry.name;
      EXPECT_EQ(a.ffn, b.ffn) << entry.name;
      ++compared;
    }
  }
  EXPECT_GE(compared, 8);
}

// A GGUF twin's metadata say what config.json says.
TEST(Families, BothFormatsGiveOneConfiguration) {
  for (const auto& [directory, twin] : {std::pair{"mistral", "gguf-mistral-f16"},
                                        {"gemma3", "gguf-gemma3-bf16"},
                                        {"phi3", "gguf-phi3-q8_0"},
                                        {"mixtral", "gguf-mixtral-q8_0"},
                                        {"qwen3moe", "gguf-qwen3moe-f32"}}) {
    SCOPED_TRACE(twin);
    const auto a = open_model(fixture_model(TRIREME_FIXTURES, directory).path);
    const auto b = open_model(fixture_model(TRIREME_FIXTURES, twin).path);
    EXPECT_EQ(windows_of(a->config()), windows_of(b->config()));
    EXPECT_EQ(experts_of(a->config()), experts_of(b->config()));
    EXPECT_EQ(a->config().experts(), b->config().experts());
    EXPECT_EQ(a->config().ffn, b->config().ffn);
    EXPECT_EQ(a->config().embedding_scale, b->config().embedding_scale);
    ASSERT_EQ(a->config().ropes.size(), b->config().ropes.size());
    for (size_t i = 0; i < a->config().ropes.size(); ++i) {
      EXPECT_EQ(inverse_frequencies(a->config().ropes[i]),
                inverse_frequencies(b->config().ropes[i]));
      EXPECT_FLOAT_EQ(a->config().ropes[i].magnitude, b->config().ropes[i].magnitude);
    }
    const LayerConfig& one = a->config().layers[0];
    const LayerConfig& other = b->config().layers[0];
    EXPECT_FLOAT_EQ(one.attention_scale, other.attention_scale);
    EXPECT_EQ(one.post_norms, other.post_norms);
    EXPECT_EQ(one.qk_norm, other.qk_norm);
    EXPECT_EQ(one.activation, other.activation);
  }
}

}  // namespace
}  // namespace trireme
