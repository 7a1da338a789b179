#include "runtime/engine.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "tests/support/errors.h"
#include "tests/support/model_fixture.h"
#include "tests/unit/engine_world.h"

namespace trireme {
namespace {

constexpr const char* kModel = "llama-plain";
constexpr int kVocab = 259;

Sequence greedy_of(const std::vector<int32_t>& prompt, int max_tokens) {
  Sequence sequence;
  sequence.tokens = prompt;
  sequence.prompt_tokens = static_cast<int32_t>(prompt.size());
  sequence.sampling.temperature = 0.0f;
  sequence.sampling.max_tokens = max_tokens;
  return sequence;
}

// With and without look-ahead.
class EngineRun : public testing::TestWithParam<bool> {
 protected:
  static InstanceOptions options_of(const std::string& model, const std::string& layout) {
    auto options = small_options(model, layout);
    options.look_ahead = GetParam() ? "on" : "off";
    return options;
  }
  static InstanceOptions options_of(const std::string& layout) {
    return options_of(kModel, layout);
  }
};

INSTANTIATE_TEST_SUITE_P(LookAhead, EngineRun, testing::Bool(),
                         [](const auto& test) { return test.param ? "on" : "off"; });

// Tokens as Hugging Face chose them, wherever its margin is not a matter of rounding.
TEST_P(EngineRun, GreedyEqualsTheFixtures) {
  for (const char* name : {"llama-plain", "llama3", "qwen2", "qwen3"}) {
    const auto expected = read_expected(fixture_model(TRIREME_FIXTURES, name));
    EngineWorld world(options_of(name, "tensor=2,pipeline=2"));
    std::vector<Sequence> sequences;
    for (const ExpectedPrompt& prompt : expected.prompts) {
      const int room = 192 - static_cast<int>(prompt.ids.size());
      sequences.push_back(greedy_of(prompt.ids, std::min(40, room)));
    }
    const auto outputs = world.run(sequences);
    for (size_t i = 0; i < outputs.size(); ++i) {
      const ExpectedPrompt& prompt = expected.prompts[i];
      for (size_t t = 0; t < outputs[i].tokens.size() && prompt.margins[t] > 1e-3f; ++t) {
        ASSERT_EQ(outputs[i].tokens[t], prompt.greedy[t]) << name << " prompt " << i << " at " << t;
      }
    }
  }
}

TEST_P(EngineRun, PromptLogprobsEqualTheFixtures) {
  std::ifstream file(std::string(TRIREME_FIXTURES) + "/models/llama-plain/expected.json");
  const auto json = nlohmann::json::parse(file);
  const auto ids =
      json["prompts"][json["logprobs"]["prompt"].get<size_t>()]["ids"].get<std::vector<int32_t>>();
  const auto values = json["logprobs"]["values"].get<std::vector<float>>();
  for (const char* layout : {"tensor=1", "tensor=2,pipeline=2"}) {
    for (const int chunk : {7, 512}) {
      auto options = options_of(layout);
      options.max_chunk = chunk;
      EngineWorld world(options);
      Sequence sequence = greedy_of(ids, 0);
      sequence.sampling.prompt_logprobs = kVocab;
      for (int round = 0; round < 2; ++round) {  // a cached prefix must not hide positions
        const Output output = world.run_one(sequence);
        EXPECT_EQ(output.finish, FinishReason::kLength);
        ASSERT_EQ(output.prompt.size(), values.size());
        for (size_t i = 0; i < values.size(); ++i) {
          EXPECT_EQ(output.prompt[i].token, ids[i + 1]);
          EXPECT_NEAR(output.prompt[i].logprob, values[i], 1e-3) << i;
          ASSERT_EQ(output.prompt_top[i].size(), static_cast<size_t>(kVocab));
          double sum = 0.0;
          for (const TokenLogprob& entry : output.prompt_top[i]) sum += std::exp(entry.logprob);
          EXPECT_NEAR(sum, 1.0, 1e-4);
        }
      }
    }
  }
}

TEST_P(EngineRun, LogprobsOfGeneratedTokens) {
  EngineWorld world(options_of("tensor=2"));
  Sequence sequence = random_sequence(3, kVocab, 20, 12, true);
  sequence.sampling.logprobs = 4;
  const Output output = world.run_one(sequence);
  ASSERT_GE(output.tokens.size(), 6u);
  // Scoring prompt and output as one prompt must say the same.
  Sequence whole = greedy_of(sequence.tokens, 0);
  whole.tokens.insert(whole.tokens.end(), output.tokens.begin(), output.tokens.end());
  whole.prompt_tokens = whole.size();
  whole.sampling.prompt_logprobs = 4;
  const Output scored = world.run_one(whole);
  for (size_t i = 0; i < output.tokens.size(); ++i) {
    EXPECT_NEAR(output.logprobs[i], scored.prompt[19 + i].logprob, 1e-5);
    ASSERT_EQ(output.top[i].size(), 4u);
    for (size_t k = 0; k < 4; ++k) {
      EXPECT_EQ(output.top[i][k].token, scored.prompt_top[19 + i][k].token);
    }
  }
}

TEST(Engine, RefusesWhatCanNeverRun) {
  EngineWorld world(small_options(kModel, "tensor=1"));
  SequenceId id = 0;
  const Sequence good = random_sequence(1, kVocab, 8, 4, false);
  const Sequence bad = random_sequence(1, kVocab, 500, 4, false);
  EXPECT_EQ(code_of([&] { world.submit({bad}, &id); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { world.submit({good, bad}, &id); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(world.run_one(good).tokens.size(), 4u);
  world.stop();
}

TEST_P(EngineRun, FullQueueTakesAllOrNone) {
  auto options = options_of("tensor=1");
  options.max_queue = 3;
  options.max_running = 1;
  EngineWorld world(options);
  SequenceId running = 0, first = 0, second = 0;
  ASSERT_TRUE(world.submit({random_sequence(1, kVocab, 8, 180, false)}, &running));
  world.wait_tokens(running, 1);
  ASSERT_TRUE(world.submit({random_sequence(2, kVocab, 8, 2, false)}, &first));
  const Sequence one = random_sequence(3, kVocab, 8, 2, false);
  EXPECT_FALSE(world.submit({one, one, one}, &second));
  EXPECT_TRUE(world.submit({one, one}, &second));
  // More outputs than can ever wait: asking again would not help.
  SequenceId never = 0;
  EXPECT_EQ(code_of([&] {
              world.submit({one, one, one, one}, &never);
            }),
            ErrorCode::kInvalidArgument);
  world.engine().abort(running);
  EXPECT_EQ(world.wait(running).finish, FinishReason::kAborted);
  EXPECT_EQ(world.wait(first).tokens.size(), 2u);
  EXPECT_EQ(world.wait(second + 1).tokens.size(), 2u);
  world.stop();
}

TEST_P(EngineRun, AbortsFreeEverything) {
  for (const char* layout : {"tensor=1", "tensor=1,pipeline=2"}) {
    EngineWorld world(options_of(layout));
    std::vector<Sequence> sequences;
    for (uint64_t i = 0; i < 20; ++i)
      sequences.push_back(random_sequence(i, kVocab, 30, 150, false));
    SequenceId first = 0;
    ASSERT_TRUE(world.submit(sequences, &first));
    world.wait_tokens(first, 3);
    for (uint64_t i = 0; i < 20; ++i) world.engine().abort(first + i);
    world.engine().abort(999999);
    for (uint64_t i = 0; i < 20; ++i) {
      EXPECT_EQ(world.wait(first + i).finish, FinishReason::kAborted);
    }
    EXPECT_EQ(world.run_one(random_sequence(5, kVocab, 10, 3, false)).tokens.size(), 3u);
    world.stop();
    EXPECT_EQ(world.wait(first).late_events, 0);
  }
}

TEST_P(EngineRun, StatsAfterwards) {
  EngineWorld world(options_of("tensor=1"));
  EXPECT_EQ(world.run_one(random_sequence(1, kVocab, 40, 6, false)).tokens.size(), 6u);
  // The snapshot is made before the last event is handed out.
  const EngineStats stats = world.engine().stats();
  EXPECT_EQ(stats.generated_tokens, 6u);
  EXPECT_EQ(stats.prompt_tokens, 40u);
  EXPECT_EQ(stats.scheduler.kv.used, 0);
  EXPECT_EQ(stats.scheduler.running, 0);
  EXPECT_EQ(stats.scheduler.waiting, 0);
}

TEST_P(EngineRun, StopEndsEverySequence) {
  for (const char* layout : {"tensor=1", "tensor=2,pipeline=2"}) {
    EngineWorld world(options_of(layout));
    std::vector<Sequence> sequences;
    for (uint64_t i = 0; i < 60; ++i)
      sequences.push_back(random_sequence(i, kVocab, 30, 150, false));
    SequenceId first = 0, later = 0;
    ASSERT_TRUE(world.submit(sequences, &first));
    world.wait_tokens(first, 2);
    world.engine().stop();
    for (uint64_t i = 0; i < 60; ++i) {
      EXPECT_EQ(world.wait(first + i).finish, FinishReason::kAborted);
    }
    EXPECT_EQ(code_of([&] { world.submit({sequences[0]}, &later); }), ErrorCode::kUnavailable);
    world.stop();
    EXPECT_EQ(world.engine_error(), nullptr);
  }
}

TEST_P(EngineRun, StopWithoutWorkEndsTheRanks) {
  EngineWorld world(options_of("tensor=2,pipeline=2"));
  world.stop();
  EXPECT_EQ(world.engine_error(), nullptr);
}

// What follows a token that ends its sequence may be in flight already: nobody sees it.
TEST_P(EngineRun, NothingFollowsAStopId) {
  EngineWorld world(options_of("tensor=2"));
  const Sequence whole = random_sequence(4, kVocab, 20, 40, false);
  const Output output = world.run_one(whole);
  ASSERT_EQ(output.tokens.size(), 40u);
  std::vector<Sequence> sequences;
  for (const size_t at : {0u, 1u, 7u, 30u}) {
    sequences.push_back(whole);
    sequences.back().sampling.stop_ids = {output.tokens[at]};
  }
  const auto outputs = world.run(sequences);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& stop = sequences[i].sampling.stop_ids[0];
    const auto end = std::find(output.tokens.begin(), output.tokens.end(), stop) + 1;
    EXPECT_EQ(outputs[i].tokens, (std::vector<int32_t>(output.tokens.begin(), end)));
    EXPECT_EQ(outputs[i].finish, FinishReason::kStop);
  }
  world.stop();
  EXPECT_EQ(world.wait(2).late_events, 0);
  EXPECT_EQ(world.engine_error(), nullptr);
}

// A token that is always the likeliest ends the output, but not before min_tokens others: counted
// from the end of the prompt, also by a resumed sequence.
TEST_P(EngineRun, MinTokensComeBeforeAStopId) {
  constexpr int32_t kStop = 5, kOther = 9;
  EngineWorld world(options_of("tensor=2"));
  Sequence sequence = random_sequence(4, kVocab, 20, 40, false);
  sequence.sampling.allowed_tokens = {kStop, kOther};
  sequence.sampling.logit_bias = {{kStop, 1000.0f}};
  sequence.sampling.stop_ids = {kStop};
  sequence.sampling.min_tokens = 7;
  Sequence resumed = sequence;
  resumed.tokens.insert(resumed.tokens.end(), 3, kOther);
  const auto outputs = world.run({sequence, resumed});
  for (size_t i = 0; i < outputs.size(); ++i) {
    std::vector<int32_t> expected(i == 0 ? 7 : 4, kOther);
    expected.push_back(kStop);
    EXPECT_EQ(outputs[i].tokens, expected);
    EXPECT_EQ(outputs[i].finish, FinishReason::kStop);
  }
}

TEST_P(EngineRun, NothingLeftToSampleEndsOnlyThatSequence) {
  EngineWorld world(options_of("tensor=2"));
  Sequence hopeless = random_sequence(1, kVocab, 8, 10, false);
  hopeless.sampling.allowed_tokens = {4};
  hopeless.sampling.banned_tokens = {4};
  Sequence last = hopeless;  // ends with the token that could not be sampled
  last.sampling.max_tokens = 1;
  const Sequence good = random_sequence(2, kVocab, 8, 10, false);
  const auto outputs = world.run({hopeless, last, good});
  for (const size_t i : {0u, 1u}) {
    EXPECT_EQ(outputs[i].finish, FinishReason::kError);
    EXPECT_TRUE(outputs[i].tokens.empty());
  }
  EXPECT_EQ(outputs[2].finish, FinishReason::kLength);
  EXPECT_EQ(world.engine().stats().scheduler.kv.used, 0);
}

TEST_P(EngineRun, BrokenWorldGivesEverySequenceAnError) {
  EngineWorld world(options_of("tensor=2,pipeline=2"));
  log::init("off");  // the ranks complain, as they should
  std::vector<Sequence> sequences;
  for (uint64_t i = 0; i < 10; ++i) sequences.push_back(random_sequence(i, kVocab, 30, 150, false));
  SequenceId first = 0;
  ASSERT_TRUE(world.submit(sequences, &first));
  world.wait_tokens(first, 2);
  world.instance().world().control->abort("a test pulls the plug");
  for (uint64_t i = 0; i < 10; ++i) EXPECT_EQ(world.wait(first + i).finish, FinishReason::kError);
  world.stop();
  ASSERT_NE(world.engine_error(), nullptr);
  EXPECT_EQ(code_of([&] { std::rethrow_exception(world.engine_error()); }), ErrorCode::kAborted);
}

// The last stage takes its orders and never reports: rank 0 must not wait for ever.
TEST(Engine, SilentLastStageEndsAtTheDeadline) {
  log::init("off");
  const auto options = small_options(kModel, "pipeline=2");
  auto controls = make_thread_communicators(2, "control");
  std::promise<void> over;
  std::thread silent([&, control = std::move(controls[1])]() mutable {
    Instance instance(std::move(control), options);
    over.get_future().wait();
  });
  Instance instance(std::move(controls[0]), options);
  instance.world().control->set_deadline(std::chrono::milliseconds(200));
  Sequence sequence = random_sequence(1, kVocab, 20, 4, false);
  sequence.id = 7;
  std::vector<EngineEvent> events;
  instance.engine().set_sink([&](std::vector<EngineEvent>&& some) {
    for (EngineEvent& event : some) events.push_back(std::move(event));
  });
  ASSERT_TRUE(instance.engine().submit({sequence}));
  std::string message;
  try {
    instance.engine().run();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDeadlineExceeded);
    message = error.what();
  }
  over.set_value();
  silent.join();
  EXPECT_NE(message.find("control"), std::string::npos) << message;
  EXPECT_NE(message.find("probe for a message from rank 1"), std::string::npos) << message;
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].finish, FinishReason::kError);
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

TEST_P(EngineRun, IdleRanksUseNoCpu) {
  EngineWorld world(options_of("tensor=2,pipeline=2"));
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(world.run_one(random_sequence(1, kVocab, 20, 4, false)).tokens.size(), 4u);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // spinning ends
    const double before = cpu_seconds();
    std::this_thread::sleep_for(std::chrono::seconds(1));
    // 2% of a core for each of four ranks. Who spins gets that much on a busy machine, too.
    EXPECT_LT(cpu_seconds() - before, 0.08);
  }
}

}  // namespace
}  // namespace trireme
