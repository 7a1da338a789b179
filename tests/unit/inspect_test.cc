// inspect_model: what files hold, and how it refuses damaged ones.
#include "runtime/model/inspect.h"

#include <gtest/gtest.h>

#include "tests/support/model_files.h"

namespace trireme {
namespace {

const TensorFacts& tensor_of(const ModelFacts& facts, const std::string& name) {
  for (const TensorFacts& tensor : facts.tensors) {
    if (tensor.name == name) return tensor;
  }
  fail(ErrorCode::kNotFound, "no tensor {}", name);
}

TEST(Inspect, ReadsGguf) {
  const ModelFacts facts = inspect_model(TRIREME_FIXTURES "/models/gguf/llama-wide-q4_k.gguf");
  EXPECT_EQ(facts.format, "GGUF v3");
  EXPECT_EQ(facts.config["general.architecture"], "llama");
  EXPECT_EQ(facts.config["llama.block_count"], 3);
  EXPECT_EQ(facts.config["general.file_type"], 15);
  EXPECT_EQ(facts.tokenizer, "");
  EXPECT_EQ(facts.refusal, "");
  const TensorFacts& down = tensor_of(facts, "blk.1.ffn_down.weight");
  EXPECT_EQ(down.type, "Q4_K");
  EXPECT_EQ(down.shape, (std::vector<int64_t>{256, 256}));
  EXPECT_EQ(down.bytes, 256 * 144);
  EXPECT_EQ(down.elements, 65536);
  EXPECT_EQ(tensor_of(facts, "output_norm.weight").type, "F32");
}

TEST(Inspect, ReadsDirectories) {
  const ModelFacts facts = inspect_model(TRIREME_FIXTURES "/models/llama-plain");
  EXPECT_EQ(facts.format, "safetensors");
  EXPECT_EQ(facts.config["num_hidden_layers"], 4);
  EXPECT_EQ(facts.tensors.size(), 4u * 9 + 3);
  EXPECT_TRUE(std::is_sorted(facts.tensors.begin(), facts.tensors.end(),
                             [](const auto& a, const auto& b) { return a.name < b.name; }));
  EXPECT_EQ(tensor_of(facts, "lm_head.weight").bytes, 259 * 96 * 4);
  EXPECT_EQ(facts.refusal, "");
}

// What this program cannot run can still be looked at.
TEST(Inspect, ReadsWhatIsRefused) {
  const TempDirectory directory;
  const auto gguf = GgufBuilder()
                        .text("general.architecture", "starship")
                        .text("tokenizer.ggml.model", "gpt2")
                        .text("tokenizer.ggml.pre", "warp")
                        .text("tokenizer.chat_template", "{{ x }}")
                        .value<uint64_t>("huge", GgufType::kU64, ~0ull)
                        .array("list", GgufType::kI32, 2, "01234567")
                        .tensor("a", {256, 2}, 16, 0)
                        .build(512);
  ModelFacts facts = inspect_model(directory.write("a.gguf", gguf));
  EXPECT_NE(facts.refusal.find("starship"), std::string::npos) << facts.refusal;
  EXPECT_EQ(facts.tokenizer, "gpt2, warp");
  EXPECT_EQ(facts.chat_template, "{{ x }}");
  EXPECT_EQ(facts.config["huge"], ~0ull);
  EXPECT_EQ(facts.config["list"], "i32[2]");
  EXPECT_FALSE(facts.config.contains("tokenizer.chat_template"));
  EXPECT_EQ(facts.tensors.at(0).type, "IQ2_XXS");
  EXPECT_EQ(facts.tensors.at(0).bytes, std::nullopt);
  directory.write("config.json", R"({"architectures": ["StarshipForCausalLM"]})");
  directory.write(
      "model.safetensors",
      safetensors_bytes(R"({"w": {"dtype": "F8_E4M3", "shape": [2, 3], "data_offsets": [0, 6]}})",
                        6));
  directory.write("tokenizer.json", R"({"model": {"type": "Unigram"}})");
  directory.write("tokenizer_config.json",
                  R"({"chat_template": [{"name": "tool_use", "template": "t"},
                                        {"name": "default", "template": "d"}]})");
  facts = inspect_model(directory.path());
  EXPECT_NE(facts.refusal.find("Starship"), std::string::npos) << facts.refusal;
  EXPECT_EQ(facts.tensors.at(0).type, "F8_E4M3");
  EXPECT_EQ(facts.tensors.at(0).bytes, 6);
  EXPECT_EQ(facts.tokenizer, "Unigram");
  EXPECT_EQ(facts.chat_template, "d");
}

TEST(Inspect, RefusesDamage) {
  const TempDirectory directory;
  const auto code = [](const std::string& path) {
    return error_of([&] { inspect_model(path); }).code();
  };
  EXPECT_EQ(code(directory.path("absent")), ErrorCode::kNotFound);
  EXPECT_EQ(code(directory.path()), ErrorCode::kNotFound);  // no config.json
  EXPECT_EQ(code(directory.write("a.safetensors", "x")), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(directory.write("text.gguf", "hello")), ErrorCode::kDataLoss);
  const std::string whole = read_bytes(TRIREME_FIXTURES "/models/gguf/llama-wide-q4_k.gguf");
  EXPECT_EQ(code(directory.write("cut.gguf", whole.substr(0, 100000))), ErrorCode::kDataLoss);
  directory.write("config.json", "[]");
  EXPECT_EQ(code(directory.path()), ErrorCode::kDataLoss);
  directory.write("config.json", "{}");
  EXPECT_EQ(code(directory.path()), ErrorCode::kNotFound);  // no weights
  directory.write("model.safetensors",
                  safetensors_bytes(R"({"w": {"dtype": "F8_E4M3", "shape": [4294967296, 4294967296],
                                               "data_offsets": [0, 6]}})",
                                    6));
  EXPECT_EQ(code(directory.path()), ErrorCode::kDataLoss);
}

}  // namespace
}  // namespace trireme
