// The same tokens come out whatever the engine does on the way: chunks, prefix hits, batches,
// preemption, resumption, layouts and steps launched ahead. Float32 weights: exactly.
#include <gtest/gtest.h>

#include "tests/unit/engine_world.h"

namespace trireme {
namespace {

constexpr const char* kModel = "llama-plain";
constexpr int kVocab = 259;
constexpr int kTokens = 24;

// Requests of many kinds; prompts of 1 to 100 tokens.
std::vector<Sequence> requests() {
  std::vector<Sequence> sequences;
  const int prompts[] = {1, 2, 15, 16, 17, 33, 64, 100};
  for (uint64_t i = 0; i < 8; ++i) {
    sequences.push_back(random_sequence(i, kVocab, prompts[i], kTokens, i > 0));
  }
  return sequences;
}

// Each request alone, its prompt whole, nothing cached, one rank.
const std::vector<Output>& baseline() {
  static const std::vector<Output> outputs = [] {
    auto options = small_options(kModel, "tensor=1");
    options.prefix_cache = false;
    EngineWorld world(options);
    std::vector<Output> alone;
    for (const Sequence& sequence : requests()) alone.push_back(world.run_one(sequence));
    return alone;
  }();
  return outputs;
}

void expect_baseline(const std::vector<Output>& outputs, const std::string& what) {
  ASSERT_GE(outputs.size(), baseline().size()) << what;
  for (size_t i = 0; i < baseline().size(); ++i) {
    EXPECT_EQ(outputs[i].tokens, baseline()[i].tokens) << what << ", request " << i;
    EXPECT_EQ(outputs[i].finish, baseline()[i].finish) << what << ", request " << i;
    EXPECT_EQ(outputs[i].late_events, 0);
  }
}

// With and without look-ahead, which layouts of one stage can have.
class EngineEquality : public testing::TestWithParam<bool> {
 protected:
  static InstanceOptions options_of(const std::string& layout) {
    auto options = small_options(kModel, layout);
    options.look_ahead = GetParam() ? "on" : "off";
    return options;
  }
  static void expect_look_ahead(EngineWorld& world) {
    const SchedulerStats stats = world.engine().stats().scheduler;
    EXPECT_EQ(stats.rows_ahead > 100, GetParam()) << stats.rows_ahead;
    EXPECT_LT(stats.ghosts, stats.rows_ahead + 1);
  }
};

INSTANTIATE_TEST_SUITE_P(LookAhead, EngineEquality, testing::Bool(),
                         [](const auto& test) { return test.param ? "on" : "off"; });

TEST(EngineBaseline, IsWorthComparing) {
  for (const Output& output : baseline()) {
    EXPECT_TRUE(output.finish == FinishReason::kLength || output.finish == FinishReason::kStop);
    EXPECT_GE(output.tokens.size(), static_cast<size_t>(kTokens / 2));
  }
  EXPECT_EQ(baseline()[0].tokens.size(), static_cast<size_t>(kTokens));
}

TEST_P(EngineEquality, ChunksOfAnySize) {
  for (const int chunk : {1, 5, 16, 31}) {
    auto options = options_of("tensor=1");
    options.max_chunk = chunk;
    options.token_budget = 64;
    EngineWorld world(options);
    expect_baseline(world.run(requests()), "chunks of " + std::to_string(chunk));
  }
}

TEST_P(EngineEquality, TightBudget) {
  auto options = options_of("tensor=1");
  options.token_budget = 9;  // rows of a step do not even all fit
  EngineWorld world(options);
  expect_baseline(world.run(requests()), "budget of 9");
}

TEST_P(EngineEquality, PrefixCached) {
  EngineWorld world(options_of("tensor=1"));
  expect_baseline(world.run(requests()), "first time");
  const auto again = world.run(requests());
  expect_baseline(again, "second time");
  EXPECT_EQ(again[7].cached, 96);  // six of the seven blocks of 100 tokens
  EXPECT_EQ(again[0].cached, 0);
}

TEST_P(EngineEquality, InABatchOfOthers) {
  EngineWorld world(options_of("tensor=1"));
  auto sequences = requests();
  for (uint64_t i = 0; i < 32; ++i) {
    const int prompt = 1 + static_cast<int>(i * 37 % 90);
    sequences.push_back(random_sequence(100 + i, kVocab, prompt, 5 + static_cast<int>(i), true));
  }
  expect_baseline(world.run(sequences), "with 32 others");
  expect_look_ahead(world);
}

TEST_P(EngineEquality, Preempted) {
  for (const char* layout : {"tensor=1", "tensor=1,pipeline=2"}) {
    auto options = options_of(layout);
    options.max_context = 128;
    const int64_t block_bytes = 4 * 2 * 3 * 16 * 16 * 4;  // on one rank with all layers
    options.kv_memory = 14 * block_bytes;
    if (std::string(layout) != "tensor=1") options.kv_memory /= 2;
    EngineWorld world(options);
    expect_baseline(world.run(requests()), std::string("tiny pool on ") + layout);
    EXPECT_GT(world.engine().stats().scheduler.preemptions, 0u) << layout;
  }
}

TEST_P(EngineEquality, ResumedFromEveryPosition) {
  for (const char* layout : {"tensor=1", "tensor=2"}) {
    EngineWorld world(options_of(layout));
    const auto whole = requests();
    for (const size_t i : {1u, 4u, 5u}) {
      const auto& tokens = baseline()[i].tokens;
      std::vector<Sequence> resumed;
      for (size_t position = 0; position < tokens.size(); ++position) {
        Sequence sequence = whole[i];
        sequence.tokens.insert(sequence.tokens.end(), tokens.begin(),
                               tokens.begin() + static_cast<std::ptrdiff_t>(position));
        resumed.push_back(sequence);
      }
      const auto outputs = world.run(resumed);
      for (size_t position = 0; position < tokens.size(); ++position) {
        const std::vector<int32_t> rest(tokens.begin() + static_cast<std::ptrdiff_t>(position),
                                        tokens.end());
        EXPECT_EQ(outputs[position].tokens, rest)
            << layout << " request " << i << " from " << position;
        EXPECT_EQ(outputs[position].finish, baseline()[i].finish);
      }
    }
  }
}

TEST_P(EngineEquality, EveryLayout) {
  for (const char* layout :
       {"tensor=2", "tensor=3", "pipeline=2", "tensor=2,pipeline=2", "tensor=3,pipeline=2"}) {
    auto options = options_of(layout);
    options.max_chunk = 40;
    EngineWorld world(options);
    expect_baseline(world.run(requests()), layout);
    expect_baseline(world.run(requests()), std::string(layout) + " again");
  }
}

TEST_P(EngineEquality, MoreStepsInFlight) {
  for (const int steps : {1, 2, 5}) {
    auto options = options_of("pipeline=3");
    options.steps_in_flight = steps + (GetParam() ? 1 : 0);
    options.max_chunk = 13;
    EngineWorld world(options);
    expect_baseline(world.run(requests()), std::to_string(steps) + " steps in flight");
  }
}

}  // namespace
}  // namespace trireme
