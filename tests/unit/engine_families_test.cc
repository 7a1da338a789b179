// Models whose layers all have a window, whose layers differ in it, and with experts: the same
// tokens come out whatever the engine does on the way.
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <map>

#include "tests/unit/engine_world.h"

namespace trireme {
namespace {

constexpr int kVocab = 259;
constexpr int kTokens = 24;

struct Family {
  const char* model;
  std::vector<int> windows;  // of its KV groups
  int kv_heads;
  int layer_blocks;  // of a pool that makes sequences wait
};

std::vector<Sequence> requests() {
  std::vector<Sequence> sequences;
  const int prompts[] = {1, 11, 12, 13, 21, 36, 64, 100};
  for (uint64_t i = 0; i < 8; ++i) {
    sequences.push_back(random_sequence(i, kVocab, prompts[i], kTokens, i % 4 == 3));
  }
  return sequences;
}

// A model, with and without look-ahead.
using Case = std::tuple<Family, bool>;

class EngineFamilies : public testing::TestWithParam<Case> {
 protected:
  const Family& family() const { return std::get<0>(GetParam()); }
  InstanceOptions options_of(const std::string& layout) const {
    InstanceOptions options = small_options(family().model, layout);
    options.look_ahead = std::get<1>(GetParam()) ? "on" : "off";
    return options;
  }

  // Each request alone, its prompt whole, nothing cached, one rank.
  const std::vector<Output>& baseline() const {
    static std::map<std::string, std::vector<Output>> known;
    std::vector<Output>& outputs = known[family().model];
    if (!outputs.empty()) return outputs;
    auto options = small_options(family().model, "tensor=1");
    options.prefix_cache = false;
    options.look_ahead = "off";
    EngineWorld world(options);
    for (const Sequence& sequence : requests()) outputs.push_back(world.run_one(sequence));
    return outputs;
  }

  void expect_baseline(const std::vector<Output>& outputs, const std::string& what) const {
    ASSERT_GE(outputs.size(), baseline().size()) << what;
    for (size_t i = 0; i < baseline().size(); ++i) {
      EXPECT_EQ(outputs[i].tokens, baseline()[i].tokens) << what << ", request " << i;
      EXPECT_EQ(outputs[i].finish, baseline()[i].finish) << what << ", request " << i;
    }
  }
};

TEST_P(EngineFamilies, ChunksOfAnySize) {
  for (const int chunk : {1, 7, 16, 40}) {
    auto options = options_of("tensor=1");
    options.max_chunk = chunk;
    options.token_budget = 64;
    EngineWorld world(options);
    const auto& groups = world.instance().pool_config().groups;
    ASSERT_EQ(groups.size(), family().windows.size());
    for (size_t g = 0; g < groups.size(); ++g) EXPECT_EQ(groups[g].window, family().windows[g]);
    expect_baseline(world.run(requests()), "chunks of " + std::to_string(chunk));
  }
}

TEST_P(EngineFamilies, PrefixCached) {
  EngineWorld world(options_of("tensor=1"));
  expect_baseline(world.run(requests()), "first time");
  const auto again = world.run(requests());
  expect_baseline(again, "second time");
  EXPECT_EQ(again[7].cached, 96);
}

TEST_P(EngineFamilies, InABatchOfOthers) {
  EngineWorld world(options_of("tensor=1"));
  auto sequences = requests();
  for (uint64_t i = 0; i < 24; ++i) {
    const int prompt = 1 + static_cast<int>(i * 37 % 90);
    sequences.push_back(random_sequence(100 + i, kVocab, prompt, 5 + static_cast<int>(i), true));
  }
  expect_baseline(world.run(sequences), "with 24 others");
}

TEST_P(EngineFamilies, Preempted) {
  for (const char* layout : {"tensor=1", "pipeline=2"}) {
    auto options = options_of(layout);
    options.max_context = 128;
    options.max_chunk = 16;
    const int64_t layer_block = int64_t{2} * family().kv_heads * 16 * 16 * 4;
    options.kv_memory = layer_block * family().layer_blocks;
    if (std::string(layout) != "tensor=1") options.kv_memory = options.kv_memory * 3 / 5;
    EngineWorld world(options);
    expect_baseline(world.run(requests()), std::string("tiny pool on ") + layout);
    EXPECT_GT(world.engine().stats().scheduler.preemptions, 0u) << layout;
  }
}

// The figures of every step, as the engine's own thread sees them.
TEST_P(EngineFamilies, BlocksBehindWindowsAreFreed) {
  auto options = options_of("tensor=1");
  options.max_chunk = 16;
  EngineWorld world(options);
  Sequence sequence = random_sequence(4, kVocab, 100, 80, false);
  sequence.id = 1;
  int64_t positions = 100;
  std::promise<void> over;
  world.engine().set_sink([&](std::vector<EngineEvent>&& events) {
    const EngineStats stats = world.engine().stats();
    for (const EngineEvent& event : events) {
      positions += event.token >= 0;
      if (event.finish != FinishReason::kNone) over.set_value();
    }
    int64_t most = 0;  // with a chunk ahead, at any offset
    for (const int window : family().windows) {
      most += window > 0 ? (window + 16 + 15) / 16 + 1 : (positions + 15) / 16;
    }
    EXPECT_LE(stats.scheduler.kv.used, most) << "at " << positions;
  });
  ASSERT_TRUE(world.engine().submit({sequence}));
  over.get_future().wait();
  world.engine().set_sink(nullptr);  // the last step's call has returned
  EXPECT_GT(positions, 140);
  EXPECT_EQ(world.engine().stats().scheduler.kv.used, 0);
}

TEST_P(EngineFamilies, Resumed) {
  for (const char* layout : {"tensor=1", "tensor=2"}) {
    EngineWorld world(options_of(layout));
    for (const size_t i : {2u, 3u, 6u}) {
      const auto& tokens = baseline()[i].tokens;
      std::vector<Sequence> resumed;
      for (size_t position = 0; position < tokens.size(); position += 5) {
        Sequence sequence = requests()[i];
        sequence.tokens.insert(sequence.tokens.end(), tokens.begin(),
                               tokens.begin() + static_cast<std::ptrdiff_t>(position));
        resumed.push_back(sequence);
      }
      const auto outputs = world.run(resumed);
      for (size_t at = 0; at < outputs.size(); ++at) {
        const std::vector<int32_t> rest(tokens.begin() + static_cast<std::ptrdiff_t>(5 * at),
                                        tokens.end());
        EXPECT_EQ(outputs[at].tokens, rest) << layout << " request " << i << " from " << 5 * at;
      }
    }
  }
}

TEST_P(EngineFamilies, EveryLayout) {
  for (const char* layout :
       {"tensor=2", "tensor=4", "pipeline=2", "tensor=2,pipeline=2", "tensor=3,pipeline=2"}) {
    auto options = options_of(layout);
    options.max_chunk = 40;
    EngineWorld world(options);
    expect_baseline(world.run(requests()), layout);
    expect_baseline(world.run(requests()), std::string(layout) + " again");
  }
}

std::vector<Family> families() {
  return {{"mistral", {20}, 3, 40},
          {"gemma3", {12, 0}, 3, 32},
          {"phi3", {25}, 3, 40},
          {"mixtral", {0}, 2, 56},
          {"qwen3moe-mixed", {0}, 3, 70}};
}

INSTANTIATE_TEST_SUITE_P(Models, EngineFamilies,
                         testing::Combine(testing::ValuesIn(families()), testing::Bool()),
                         [](const auto& test) {
                           std::string name = std::get<0>(test.param).model;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + (std::get<1>(test.param) ? "_ahead" : "");
                         });

}  // namespace
}  // namespace trireme
