// tests/fixtures/models: the small checkpoints and what Hugging Face says of them (the format is
// described in tests/fixtures/README.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

struct FixtureEntry {
  std::string name;
  std::string path;      // for open_model
  std::string expected;  // stem of the expected values
  std::string dtype;
  int layers = 0;
  int window = 0;   // of some layers
  int experts = 0;  // of some layers
  bool quantized() const { return dtype != "f32" && dtype != "f16" && dtype != "bf16"; }
};

// All of tests/fixtures/models/index.json; `fixtures` is tests/fixtures.
std::vector<FixtureEntry> fixture_models(const std::string& fixtures);
FixtureEntry fixture_model(const std::string& fixtures, const std::string& name);

// `name` as GoogleTest wants the name of a case: no dashes.
std::string test_name(std::string name);

struct ExpectedPrompt {
  std::vector<int32_t> ids;
  std::vector<float> last_logits;
  std::vector<int32_t> greedy;
  std::vector<float> margins;
};

struct Expected {
  int64_t vocab = 0;
  double float64_distance = 0;  // relative L2 of the reference's own float32 logits from float64's
  std::vector<ExpectedPrompt> prompts;
  size_t all_positions_prompt = 0;
  std::vector<float> all_positions;  // [prompt length, vocab]
};

Expected read_expected(const FixtureEntry& entry);

}  // namespace trireme
