#include "tests/support/model_fixture.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace trireme {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(ErrorCode::kNotFound, "{}: cannot be read", path);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

std::vector<FixtureEntry> fixture_models(const std::string& fixtures) {
  const std::string folder = fixtures + "/models/";
  std::vector<FixtureEntry> entries;
  for (const auto& item : nlohmann::json::parse(read_file(folder + "index.json"))) {
    entries.push_back({item.at("name"), folder + item.at("path").get<std::string>(),
                       folder + item.at("expected").get<std::string>(), item.at("dtype"),
                       item.at("layers"), item.value("window", 0), item.value("experts", 0)});
  }
  return entries;
}

std::string test_name(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

FixtureEntry fixture_model(const std::string& fixtures, const std::string& name) {
  for (FixtureEntry& entry : fixture_models(fixtures)) {
    if (entry.name == name) return std::move(entry);
  }
  fail(ErrorCode::kNotFound, "no fixture model '{}'", name);
}

Expected read_expected(const FixtureEntry& entry) {
  const auto json = nlohmann::json::parse(read_file(entry.expected + ".json"));
  const std::string raw = read_file(entry.expected + ".bin");
  const auto floats = [&raw](int64_t offset, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    const auto begin = static_cast<size_t>(offset) * sizeof(float);
    const auto bytes = values.size() * sizeof(float);
    if (begin + bytes > raw.size()) fail(ErrorCode::kDataLoss, "expected values are cut short");
    std::memcpy(values.data(), raw.data() + begin, bytes);
    return values;
  };
  Expected expected;
  expected.vocab = json.at("vocab");
  expected.float64_distance = json.at("float64_rel_l2");
  for (const auto& item : json.at("prompts")) {
    ExpectedPrompt prompt;
    prompt.ids = item.at("ids").get<std::vector<int32_t>>();
    prompt.last_logits = floats(item.at("last_logits"), expected.vocab);
    prompt.greedy = item.at("greedy").get<std::vector<int32_t>>();
    prompt.margins = item.at("margins").get<std::vector<float>>();
    expected.prompts.push_back(std::move(prompt));
  }
  const auto& all = json.at("all_positions");
  expected.all_positions_prompt = all.at("prompt");
  expected.all_positions =
      floats(all.at("offset"), all.at("count").get<int64_t>() * expected.vocab);
  return expected;
}

}  // namespace trireme
