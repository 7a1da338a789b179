#include "tests/support/smollm2.h"

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

namespace trireme {

std::string smollm2_path() {
  const char* given = std::getenv("TRIREME_SMOLLM2");
  if (given != nullptr) return given;
  return TRIREME_FIXTURES "/../../.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

std::vector<SmolLm2Prompt> smollm2_prompts() {
  std::ifstream in(TRIREME_FIXTURES "/smollm2/expected.json");
  const auto json = nlohmann::json::parse(in);
  std::vector<SmolLm2Prompt> prompts;
  for (const auto& item : json.at("prompts")) {
    SmolLm2Prompt prompt;
    item.at("name").get_to(prompt.name);
    item.at("ids").get_to(prompt.ids);
    item.at("greedy").get_to(prompt.greedy);
    item.at("margins").get_to(prompt.margins);
    item.at("top5").get_to(prompt.top5);
    item.at("top5_ids").get_to(prompt.top5_ids);
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

}  // namespace trireme
