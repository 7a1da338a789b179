// config.json and GGUF metadata as ModelConfig, and what is refused by name.
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/model/gguf_config.h"
#include "runtime/model/hf_config.h"
#include "runtime/model/kv_cache.h"
#include "tests/support/model_files.h"

namespace trireme {
namespace {

Json llama() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"hidden_size", 64},
          {"intermediate_size", 160},
          {"num_attention_heads", 8},
          {"num_key_value_heads", 2},
          {"num_hidden_layers", 3},
          {"vocab_size", 1000},
          {"max_position_embeddings", 2048},
          {"rms_norm_eps", 1e-5},
          {"tie_word_embeddings", true},
          {"bos_token_id", 1},
          {"eos_token_id", 2}};
}

Json qwen(const char* name) {
  Json config = llama();
  config["architectures"] = {name};
  return config;
}

HuggingFaceConfig parse(const Json& config, const Json* generation = nullptr) {
  return parse_hugging_face_config(config, generation, "dir/config.json");
}

void expect_refused(const Json& config, const std::string& part,
                    ErrorCode code = ErrorCode::kDataLoss) {
  const Error error = error_of([&] { parse(config); });
  EXPECT_EQ(error.code(), code) << error.what();
  const std::string message = error.what();
  EXPECT_TRUE(message.starts_with("dir/config.json")) << message;
  EXPECT_NE(message.find(part), std::string::npos) << message << "\n  should say: " << part;
}

TEST(HuggingFaceConfig, ReadsSizes) {
  const auto parsed = parse(llama());
  const ModelConfig& model = parsed.model;
  EXPECT_EQ(model.architecture, "llama");
  EXPECT_EQ(model.hidden, 64);
  EXPECT_EQ(model.q_heads, 8);
  EXPECT_EQ(model.kv_heads, 2);
  EXPECT_EQ(model.head_dim, 8);
  EXPECT_EQ(model.ffn, 160);
  EXPECT_EQ(model.vocab, 1000);
  EXPECT_EQ(model.max_context, 2048);
  EXPECT_FLOAT_EQ(model.norm_eps, 1e-5f);
  EXPECT_TRUE(model.tied_embeddings);
  EXPECT_EQ(model.bos_id, 1);
  EXPECT_EQ(model.eos_ids, std::vector<int32_t>{2});
  ASSERT_EQ(model.layers.size(), 3u);
  EXPECT_FLOAT_EQ(model.layers[0].attention_scale, 1.0f / std::sqrt(8.0f));
  EXPECT_FALSE(model.layers[0].qkv_bias);
  EXPECT_FALSE(model.layers[0].qk_norm);
  ASSERT_EQ(model.ropes.size(), 1u);
  EXPECT_EQ(model.ropes[0].theta, 10000.0);
  EXPECT_EQ(model.ropes[0].rotary_dim, 8);
}

TEST(HuggingFaceConfig, FieldsWithDefaults) {
  Json config = llama();
  config["head_dim"] = nullptr;
  config.erase("num_key_value_heads");
  config.erase("tie_word_embeddings");
  EXPECT_EQ(parse(config).model.head_dim, 8);
  EXPECT_EQ(parse(config).model.kv_heads, 8);
  EXPECT_EQ(parse(config).tied_embeddings, std::nullopt);
  config["head_dim"] = 32;
  EXPECT_EQ(parse(config).model.head_dim, 32);
}

TEST(HuggingFaceConfig, ArchitecturesDifferByFlags) {
  EXPECT_TRUE(parse(qwen("Qwen2ForCausalLM")).model.layers[0].qkv_bias);
  EXPECT_FALSE(parse(qwen("Qwen2ForCausalLM")).model.layers[0].o_bias);
  EXPECT_TRUE(parse(qwen("Qwen3ForCausalLM")).model.layers[0].qk_norm);
  EXPECT_FALSE(parse(qwen("Qwen3ForCausalLM")).model.layers[0].qkv_bias);
  Json biased = llama();
  biased["attention_bias"] = true;
  EXPECT_TRUE(parse(biased).model.layers[2].qkv_bias);
  EXPECT_TRUE(parse(biased).model.layers[2].o_bias);
}

TEST(HuggingFaceConfig, UnknownArchitecturesGetTheList) {
  for (const char* name : {"GPT2LMHeadModel", ""}) {
    expect_refused(qwen(name), "known are LlamaForCausalLM, Mistral", ErrorCode::kUnimplemented);
  }
  Json config = llama();
  config.erase("architectures");
  expect_refused(config, "'architectures'");
}

TEST(HuggingFaceConfig, RopeOfTransformers4) {
  Json config = llama();
  config["rope_theta"] = 500000;
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 4}};
  EXPECT_EQ(parse(config).model.ropes[0].scaling, RopeConfig::Scaling::kLinear);
  EXPECT_EQ(parse(config).model.ropes[0].theta, 500000.0);
  EXPECT_EQ(parse(config).model.ropes[0].factor, 4.0);
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 8192}};
  EXPECT_EQ(parse(config).model.ropes[0].scaling, RopeConfig::Scaling::kLlama3);
  EXPECT_EQ(parse(config).model.ropes[0].original_context, 8192.0);
  config["rope_scaling"].erase("low_freq_factor");
  expect_refused(config, "rope_scaling: field 'low_freq_factor' is missing");
  config["rope_scaling"] = {{"rope_type", "default"}};
  EXPECT_EQ(parse(config).model.ropes[0].scaling, RopeConfig::Scaling::kNone);
  config["rope_scaling"] = nullptr;
  EXPECT_EQ(parse(config).model.ropes[0].scaling, RopeConfig::Scaling::kNone);
}

TEST(HuggingFaceConfig, RopeOfTransformers5) {
  Json config = qwen("Qwen3ForCausalLM");
  config["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 1e6}};
  EXPECT_EQ(parse(config).model.ropes[0].theta, 1e6);
  EXPECT_EQ(parse(config).model.ropes[0].factor, 2.0);
  config["layer_types"] = {"full_attention", "sliding_attention", "full_attention"};
  config["rope_parameters"] = {
      {"full_attention", {{"rope_type", "default"}, {"rope_theta", 1e6}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}};
  const ModelConfig model = parse(config).model;
  ASSERT_EQ(model.ropes.size(), 2u);
  EXPECT_EQ(model.layers[0].rope, 0);
  EXPECT_EQ(model.layers[1].rope, 1);
  EXPECT_EQ(model.layers[2].rope, 0);
  EXPECT_EQ(model.ropes[1].theta, 1e4);
  config["rope_parameters"].erase("sliding_attention");
  expect_refused(config, "sliding_attention");
}

TEST(HuggingFaceConfig, OtherRopesAreRefusedByName) {
  for (const char* type : {"yarn", "dynamic", "longrope", "su"}) {
    Json config = llama();
    config["rope_scaling"] = {{"rope_type", type}, {"factor", 2.0}};
    expect_refused(config, std::string("'") + type + "'", ErrorCode::kUnimplemented);
  }
  Json config = llama();
  config["rope_parameters"] = {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}};
  expect_refused(config, "partial_rotary_factor", ErrorCode::kUnimplemented);
}

TEST(HuggingFaceConfig, Windows) {
  Json config = qwen("Qwen2ForCausalLM");
  config["sliding_window"] = 128;
  config["max_window_layers"] = 1;
  config["use_sliding_window"] = false;
  for (const LayerConfig& layer : parse(config).model.layers) EXPECT_EQ(layer.window, 0);
  config["use_sliding_window"] = true;
  const ModelConfig model = parse(config).model;
  EXPECT_EQ(model.layers[0].window, 0);
  EXPECT_EQ(model.layers[1].window, 128);
  EXPECT_EQ(model.layers[2].window, 128);
  const KvGroups groups = kv_groups(model);
  EXPECT_EQ(groups.windows, (std::vector<int>{0, 128}));
  EXPECT_EQ(groups.layer_group, (std::vector<int>{0, 1, 1}));
  config["layer_types"] = {"sliding_attention", "full_attention", "full_attention"};
  EXPECT_EQ(parse(config).model.layers[0].window, 128);
  EXPECT_EQ(parse(config).model.layers[1].window, 0);
  config["sliding_window"] = 2147483647;  // holds any context: no window
  for (const LayerConfig& layer : parse(config).model.layers) EXPECT_EQ(layer.window, 0);
  config["sliding_window"] = nullptr;
  expect_refused(config, "'sliding_window' is missing");
  config["layer_types"] = {"linear_attention", "full_attention", "full_attention"};
  expect_refused(config, "'linear_attention'", ErrorCode::kUnimplemented);
  config["layer_types"] = {"full_attention"};
  expect_refused(config, "'layer_types'");
}

TEST(HuggingFaceConfig, EndOfSequenceIds) {
  const Json list = {{"eos_token_id", {7, 8}}};
  const Json one = {{"eos_token_id", 9}};
  const Json none = Json::object();
  EXPECT_EQ(parse(llama(), &list).model.eos_ids, (std::vector<int32_t>{7, 8}));
  EXPECT_EQ(parse(llama(), &one).model.eos_ids, (std::vector<int32_t>{9}));
  EXPECT_EQ(parse(llama(), &none).model.eos_ids, (std::vector<int32_t>{2}));
  Json config = llama();
  config["eos_token_id"] = "x";
  expect_refused(config, "'eos_token_id'");
  config["eos_token_id"] = {3, -1};
  expect_refused(config, "'eos_token_id'");
  config["eos_token_id"] = 1000;
  expect_refused(config, "1000");
}

TEST(HuggingFaceConfig, RefusesMissingAndAbsurdFields) {
  for (const char* key : {"hidden_size", "intermediate_size", "num_attention_heads",
                          "num_hidden_layers", "vocab_size", "max_position_embeddings"}) {
    Json config = llama();
    config.erase(key);
    expect_refused(config, std::string("'") + key + "' is missing");
    for (const Json& bad : {Json(0), Json(-1), Json(int64_t{1} << 31), Json(~0ull), Json(1.5),
                            Json("8"), Json(true), Json::array(), Json::object()}) {
      config[key] = bad;
      expect_refused(config, std::string("'") + key + "'");
    }
  }
  Json config = llama();
  config["num_key_value_heads"] = 3;
  expect_refused(config, "no multiple of 3 key-value heads");
  config = llama();
  config["num_attention_heads"] = 6;
  expect_refused(config, "'head_dim' is missing");
  config["head_dim"] = 7;
  expect_refused(config, "odd");
  config["head_dim"] = 0;
  expect_refused(config, "'head_dim'");
  config = llama();
  config["rms_norm_eps"] = -1.0;
  expect_refused(config, "'rms_norm_eps'");
  expect_refused(Json::array(), "not a JSON object");
}

TEST(HuggingFaceConfig, RefusesUnsupportedFeaturesByName) {
  Json config = llama();
  config["hidden_act"] = "gelu";
  expect_refused(config, "'gelu'", ErrorCode::kUnimplemented);
  config = llama();
  config["mlp_bias"] = true;
  expect_refused(config, "'mlp_bias'", ErrorCode::kUnimplemented);
}

TEST(QuantScheme, ReadsEveryMethod) {
  using Method = QuantScheme::Method;
  const auto parse = [](Json quantization) {
    Json config = llama();
    config["quantization_config"] = std::move(quantization);
    return parse_quant_scheme(config, "config.json").value();
  };
  EXPECT_FALSE(parse_quant_scheme(llama(), "config.json"));
  QuantScheme scheme =
      parse({{"quant_method", "awq"}, {"bits", 4}, {"group_size", 64}, {"version", "gemm"}});
  EXPECT_EQ(scheme.method, Method::kAwq);
  EXPECT_EQ(scheme.group, 64);
  scheme = parse({{"quant_method", "gptq"}, {"bits", 4}, {"group_size", -1}});
  EXPECT_EQ(scheme.method, Method::kGptq);
  EXPECT_EQ(scheme.group, 0);
  EXPECT_EQ(scheme.zero_bias, 1);
  scheme = parse({{"quant_method", "gptq"}, {"bits", 4}, {"checkpoint_format", "gptq_v2"}});
  EXPECT_EQ(scheme.zero_bias, 0);
  scheme = parse({{"quant_method", "fp8"}, {"weight_block_size", {128u, 64u}}});
  EXPECT_EQ(scheme.method, Method::kFloat8Block);
  EXPECT_EQ(scheme.block_rows, 128);
  EXPECT_EQ(scheme.block_cols, 64);
}

TEST(QuantScheme, RefusesByName) {
  const auto refuse = [](Json quantization, const std::string& part,
                         ErrorCode code = ErrorCode::kUnimplemented) {
    Json config = llama();
    config["quantization_config"] = std::move(quantization);
    expect_refused(config, part, code);
  };
  refuse({{"quant_method", "bitsandbytes"}}, "'bitsandbytes'");
  refuse(Json::object(), "''");
  refuse({{"quant_method", "gptq"}}, "'bits'", ErrorCode::kDataLoss);
  refuse({{"quant_method", "gptq"}, {"bits", 3}}, "3 is not supported");
  refuse({{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 48}}, "48 is not supported");
  refuse({{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 0}}, "0 is not supported");
  refuse({{"quant_method", "gptq"}, {"bits", 4}, {"checkpoint_format", "marlin"}}, "marlin");
  refuse({{"quant_method", "awq"}, {"bits", 4}, {"version", "gemv"}}, "gemv");
  refuse({{"quant_method", "fp8"}, {"weight_block_size", {128}}}, "weight_block_size",
         ErrorCode::kDataLoss);
  refuse({{"quant_method", "fp8"}, {"weight_block_size", {128u, 48u}}}, "weight_block_size");
  refuse({{"quant_method", "compressed-tensors"}}, "'config_groups'", ErrorCode::kDataLoss);
  const auto compressed = [](const char* format, Json weights) {
    return Json{{"quant_method", "compressed-tensors"},
                {"format", format},
                {"config_groups", {{"group_0", {{"weights", std::move(weights)}}}}}};
  };
  refuse(compressed("marlin-24", {{"num_bits", 4}, {"type", "int"}}), "marlin-24");
  refuse(compressed("pack-quantized", {{"num_bits", 8}, {"type", "int"}}), "8-bit int");
  refuse(compressed("nvfp4-pack-quantized", {{"num_bits", 4}, {"type", "float"}}), "nvfp4");
  refuse(compressed("int-quantized", {{"num_bits", 8}, {"type", "int"}, {"symmetric", false}}),
         "symmetric");
}

TEST(Json, DepthAndDuplicatesAreBounded) {
  const auto refused = [](const std::string& text, const std::string& part) {
    const Error error = error_of([&] { parse_json(text, "f.json"); });
    EXPECT_EQ(error.code(), ErrorCode::kDataLoss);
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  };
  refused(std::string(1000000, '['), "nested deeper");
  refused(R"({"a":{"b":1,"b":2}})", "'b' occurs twice");
  refused(R"([{"a":1},{"a":1,"c":{"a":1},"a":2}])", "'a' occurs twice");
  refused("", "not valid JSON");
  refused("{} x", "not valid JSON");
  EXPECT_EQ(parse_json(R"([{"a":1},{"a":{"a":2}},{"a":[]}])", "f").size(), 3u);
  std::string deep;
  for (int i = 0; i < kMaxJsonDepth; ++i) deep += '[';
  parse_json(deep + std::string(kMaxJsonDepth, ']'), "f");
}

// ---- GGUF -------------------------------------------------------------------------------------

GgufBuilder gguf(const std::string& arch = "llama") {
  GgufBuilder builder;
  builder.text("general.architecture", arch).text("general.name", "tiny");
  builder.u32(arch + ".block_count", 3).u32(arch + ".context_length", 2048);
  builder.u32(arch + ".embedding_length", 64).u32(arch + ".feed_forward_length", 160);
  builder.u32(arch + ".attention.head_count", 8).u32(arch + ".attention.head_count_kv", 2);
  builder.f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f);
  builder.tensor("token_embd.weight", {64, 100}, 0, 0);
  return builder;
}

ModelConfig parse(const GgufBuilder& builder) {
  const std::string bytes = builder.build(64 * 100 * 4 + 4096);
  const GgufFile file(std::as_bytes(std::span(bytes)), "test.gguf");
  return parse_gguf_config(file).model;
}

void expect_refused(const GgufBuilder& builder, const std::string& part,
                    ErrorCode code = ErrorCode::kDataLoss) {
  const Error error = error_of([&] { parse(builder); });
  EXPECT_EQ(error.code(), code) << error.what();
  EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
      << error.what() << "\n  should say: " << part;
}

TEST(GgufConfig, ReadsSizes) {
  GgufBuilder builder = gguf();
  builder.u32("tokenizer.ggml.eos_token_id", 2).u32("tokenizer.ggml.eot_token_id", 3);
  builder.u32("tokenizer.ggml.bos_token_id", 1).f32("llama.rope.freq_base", 5e5f);
  const ModelConfig model = parse(builder);
  EXPECT_EQ(model.architecture, "llama");
  EXPECT_EQ(model.name, "tiny");
  EXPECT_EQ(model.head_dim, 8);
  EXPECT_EQ(model.kv_heads, 2);
  EXPECT_EQ(model.vocab, 100);
  EXPECT_TRUE(model.tied_embeddings);
  EXPECT_EQ(model.eos_ids, (std::vector<int32_t>{2, 3}));
  EXPECT_EQ(model.bos_id, 1);
  EXPECT_EQ(model.ropes[0].theta, 5e5);
  EXPECT_EQ(model.layers.size(), 3u);
}

TEST(GgufConfig, FlagsFollowTheTensors) {
  GgufBuilder builder = gguf("qwen3");
  builder.tensor("output.weight", {64, 1}, 0, 25600 + 0).u32("qwen3.attention.key_length", 16);
  const ModelConfig model = parse(builder);
  EXPECT_FALSE(model.tied_embeddings);
  EXPECT_EQ(model.head_dim, 16);
  EXPECT_TRUE(model.layers[0].qk_norm);
  EXPECT_FALSE(model.layers[0].qkv_bias);
  EXPECT_TRUE(parse(gguf("qwen2")).layers[0].qkv_bias);
}

TEST(GgufConfig, Ropes) {
  GgufBuilder builder = gguf();
  builder.text("llama.rope.scaling.type", "linear");
  expect_refused(builder, "llama.rope.scaling.factor");
  builder.f32("llama.rope.scaling.factor", 4.0f);
  EXPECT_EQ(parse(builder).ropes[0].scaling, RopeConfig::Scaling::kLinear);
  EXPECT_EQ(parse(builder).ropes[0].factor, 4.0);
  expect_refused(gguf().text("llama.rope.scaling.type", "yarn"), "'yarn'",
                 ErrorCode::kUnimplemented);
  expect_refused(gguf().u32("llama.rope.dimension_count", 4), "llama.rope.dimension_count",
                 ErrorCode::kUnimplemented);
  expect_refused(gguf().tensor("rope_freqs.weight", {4}, 0, 25600), "rope_freqs.weight");  // zeros
  expect_refused(gguf().tensor("rope_freqs.weight", {3}, 0, 25600), "4 float32");
}

TEST(GgufConfig, RefusesMissingAndAbsurdFields) {
  expect_refused(GgufBuilder(), "'general.architecture' is missing");
  expect_refused(GgufBuilder().text("general.architecture", "mamba"), "known are llama, qwen2",
                 ErrorCode::kUnimplemented);
  expect_refused(GgufBuilder().text("general.architecture", "llama"), "llama.embedding_length");
  const auto with = [](std::string_view key, uint32_t number) {
    GgufBuilder builder;
    builder.text("general.architecture", "llama");
    for (const auto& [name, value] : {std::pair<std::string_view, uint32_t>{"llama.block_count", 3},
                                      {"llama.context_length", 2048},
                                      {"llama.embedding_length", 64},
                                      {"llama.feed_forward_length", 160},
                                      {"llama.attention.head_count", 8},
                                      {"llama.attention.head_count_kv", 2}}) {
      builder.u32(name, name == key ? number : value);
    }
    builder.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    return builder.tensor("token_embd.weight", {64, 100}, 0, 0);
  };
  for (const char* key : {"llama.block_count", "llama.context_length", "llama.embedding_length",
                          "llama.feed_forward_length", "llama.attention.head_count",
                          "llama.attention.head_count_kv"}) {
    expect_refused(with(key, 0), key);
    expect_refused(with(key, ~0u), key);
  }
  expect_refused(with("llama.attention.head_count_kv", 3), "no multiple of 3");
  expect_refused(gguf().u32("llama.attention.value_length", 4), "value_length",
                 ErrorCode::kUnimplemented);
  expect_refused(gguf("qwen2").u32("qwen2.expert_count", 4), "qwen2.expert_count",
                 ErrorCode::kUnimplemented);
  expect_refused(gguf().u32("llama.expert_count", 4), "llama.expert_used_count");
  for (const char* key : {"expert_shared_count", "expert_gating_func"}) {
    expect_refused(gguf().u32(std::string("llama.") + key, 2), key, ErrorCode::kUnimplemented);
  }
  expect_refused(gguf().f32("llama.final_logit_softcapping", 30.0f), "final_logit_softcapping",
                 ErrorCode::kUnimplemented);
  expect_refused(gguf("gemma3"), "gemma3.attention.sliding_window' is missing");
  const auto with_long = [](const char* arch) {
    return gguf(arch).tensor("rope_factors_long.weight", {4}, 0, 25600);
  };
  expect_refused(with_long("llama"), "'longrope' is not known for llama",
                 ErrorCode::kUnimplemented);
  expect_refused(with_long("phi3"), "phi3.rope.scaling.original_context_length");
  expect_refused(with_long("phi3").u32("phi3.rope.scaling.original_context_length", 64),
                 "rope_factors_short.weight");
  expect_refused(gguf().u32("llama.vocab_size", 99), "llama.vocab_size");
  expect_refused(gguf().u32("tokenizer.ggml.eos_token_id", 100), "100");
}

// ---- rope -------------------------------------------------------------------------------------

TEST(InverseFrequencies, EveryScaling) {
  RopeConfig rope;
  rope.rotary_dim = 8;
  rope.theta = 10000.0;
  const auto plain = inverse_frequencies(rope);
  ASSERT_EQ(plain.size(), 4u);
  EXPECT_FLOAT_EQ(plain[0], 1.0f);
  EXPECT_FLOAT_EQ(plain[1], 0.1f);
  rope.scaling = RopeConfig::Scaling::kLinear;
  rope.factor = 4.0;
  EXPECT_FLOAT_EQ(inverse_frequencies(rope)[1], 0.025f);
  rope.scaling = RopeConfig::Scaling::kFactors;
  rope.factors = {1, 2, 3, 4};
  EXPECT_FLOAT_EQ(inverse_frequencies(rope)[2], plain[2] / 3);
  rope.scaling = RopeConfig::Scaling::kLlama3;
  rope.factor = 8.0;
  rope.low_freq_factor = 1.0;
  rope.high_freq_factor = 4.0;
  rope.original_context = 512;
  const auto scaled = inverse_frequencies(rope);
  EXPECT_FLOAT_EQ(scaled[0], plain[0]);      // wavelength 6.3, below 512 / 4
  EXPECT_FLOAT_EQ(scaled[3], plain[3] / 8);  // wavelength 6283, above 512
  EXPECT_FLOAT_EQ(scaled[1], plain[1]);      // 62.8
  EXPECT_FLOAT_EQ(scaled[2], plain[2] / 8);  // 628
  rope.original_context = 1024;              // 628 lies between 256 and 1024
  const double smooth = (1024 / (2 * M_PI / 0.01) - 1) / 3;
  EXPECT_NEAR(inverse_frequencies(rope)[2], 0.01 * ((1 - smooth) / 8 + smooth), 1e-8);
}

}  // namespace
}  // namespace trireme
