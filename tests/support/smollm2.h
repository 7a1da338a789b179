// The real SmolLM2-135M-Instruct (Q4_1) and a float32 reference run of it:
// tests/fixtures/smollm2/expected.json.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

struct SmolLm2Prompt {
  std::string name;
  std::vector<int32_t> ids, greedy;  // the prompt, and 64 greedy tokens after it
  std::vector<float> margins;        // by which each leads
  std::vector<std::vector<float>> top5;
  std::vector<std::vector<int32_t>> top5_ids;
};

// TRIREME_SMOLLM2, or where launch/fetch_model puts the file.
std::string smollm2_path();

// The 20 prompts of the reference run.
std::vector<SmolLm2Prompt> smollm2_prompts();

}  // namespace trireme
