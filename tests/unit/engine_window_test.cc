// A model whose layers differ in their attention window, so that it has two KV groups: the same
// tokens come out whatever the engine does on the way, and blocks behind the window are freed.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>

#include "tests/unit/engine_world.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

constexpr int kVocab = 259;
constexpr int kTokens = 24;
constexpr int kWindow = 20;

// The qwen2 fixture: its first layer sees everything, the others `window` tokens (0: everything).
// With two stages the first one has layers of both kinds, the second one of one kind.
class WindowModel {
 public:
  explicit WindowModel(int64_t window)
      : folder_(fs::temp_directory_path() /
                ("trireme-window-" + std::to_string(window) + "-" + std::to_string(getpid()))) {
    const fs::path from = fs::path(TRIREME_FIXTURES) / "models" / "qwen2";
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    fs::copy_file(from / "model.safetensors", folder_ / "model.safetensors");
    std::ifstream in(from / "config.json");
    auto config = nlohmann::json::parse(in);
    config["use_sliding_window"] = window > 0;
    if (window > 0) config["sliding_window"] = window;
    config["max_window_layers"] = 1;
    std::ofstream(folder_ / "config.json") << config.dump();
  }
  ~WindowModel() { fs::remove_all(folder_); }
  WindowModel(const WindowModel&) = delete;
  WindowModel& operator=(const WindowModel&) = delete;

  InstanceOptions options(const std::string& layout, bool look_ahead = false) const {
    InstanceOptions options = small_options("qwen2", layout);
    options.model = folder_;
    options.look_ahead = look_ahead ? "on" : "off";
    return options;
  }

 private:
  fs::path folder_;
};

std::vector<Sequence> requests() {
  std::vector<Sequence> sequences;
  const int prompts[] = {1, 15, 19, 20, 21, 36, 64, 100};
  for (uint64_t i = 0; i < 8; ++i) {
    sequences.push_back(random_sequence(i, kVocab, prompts[i], kTokens, i % 4 == 3));
  }
  return sequences;
}

// Each request alone, its prompt whole, nothing cached, one rank.
std::vector<Output> run_alone(const WindowModel& model) {
  auto options = model.options("tensor=1");
  options.prefix_cache = false;
  EngineWorld world(options);
  std::vector<Output> alone;
  for (const Sequence& sequence : requests()) alone.push_back(world.run_one(sequence));
  return alone;
}

// With and without look-ahead.
class EngineWindow : public testing::TestWithParam<bool> {
 protected:
  static InstanceOptions options_of(const std::string& layout) {
    return model_->options(layout, GetParam());
  }
  static void SetUpTestSuite() {
    model_ = std::make_unique<WindowModel>(kWindow);
    baseline_ = run_alone(*model_);
  }
  static void TearDownTestSuite() { model_.reset(); }

  static void expect_baseline(const std::vector<Output>& outputs, const std::string& what) {
    ASSERT_EQ(outputs.size(), baseline_.size()) << what;
    for (size_t i = 0; i < outputs.size(); ++i) {
      EXPECT_EQ(outputs[i].tokens, baseline_[i].tokens) << what << ", request " << i;
      EXPECT_EQ(outputs[i].finish, baseline_[i].finish) << what << ", request " << i;
    }
  }

  static std::unique_ptr<WindowModel> model_;
  static std::vector<Output> baseline_;
};

INSTANTIATE_TEST_SUITE_P(LookAhead, EngineWindow, testing::Bool(),
                         [](const auto& test) { return test.param ? "on" : "off"; });

std::unique_ptr<WindowModel> EngineWindow::model_;
std::vector<Output> EngineWindow::baseline_;

// The window decides what comes out, once a sequence is longer than it; and only then.
TEST_P(EngineWindow, MattersBeyondItsLength) {
  const auto everything = run_alone(WindowModel(0));
  for (size_t i = 0; i < everything.size(); ++i) {
    const int prompt = requests()[i].prompt_tokens;
    const auto same = static_cast<size_t>(std::max(0, kWindow + 1 - prompt));
    ASSERT_GE(baseline_[i].tokens.size(), std::min<size_t>(same, kTokens / 2));
    for (size_t t = 0; t < same && t < everything[i].tokens.size(); ++t) {
      EXPECT_EQ(everything[i].tokens[t], baseline_[i].tokens[t]) << i << " at " << t;
    }
  }
  EXPECT_NE(everything[7].tokens, baseline_[7].tokens);
}

// INT32_MAX, as a file may say, is no window; it must not overflow anywhere.
TEST_P(EngineWindow, HugeWindowIsNone) {
  const WindowModel huge(2147483647);
  EngineWorld world(huge.options("tensor=1"));
  EXPECT_EQ(world.instance().pool_config().groups.size(), 1u);
  const auto everything = run_alone(WindowModel(0));
  EXPECT_EQ(world.run_one(requests()[7]).tokens, everything[7].tokens);
}

TEST_P(EngineWindow, ChunksOfAnySize) {
  for (const int chunk : {1, 7, 16, 40}) {
    auto options = options_of("tensor=1");
    options.max_chunk = chunk;
    options.token_budget = 64;
    EngineWorld world(options);
    ASSERT_EQ(world.instance().pool_config().groups.size(), 2u);
    expect_baseline(world.run(requests()), "chunks of " + std::to_string(chunk));
  }
}

TEST_P(EngineWindow, PrefixCached) {
  EngineWorld world(options_of("tensor=1"));
  expect_baseline(world.run(requests()), "first time");
  const auto again = world.run(requests());
  expect_baseline(again, "second time");
  EXPECT_EQ(again[7].cached, 96);
}

TEST_P(EngineWindow, Preempted) {
  for (const char* layout : {"tensor=1", "pipeline=2"}) {
    auto options = options_of(layout);
    options.max_context = 128;
    options.max_chunk = 16;
    const int64_t layer_block = 2 * 3 * 16 * 16 * 4;  // one layer's part of a block
    options.kv_memory = layer_block * (std::string(layout) == "tensor=1" ? 34 : 20);
    EngineWorld world(options);
    expect_baseline(world.run(requests()), std::string("tiny pool on ") + layout);
    EXPECT_GT(world.engine().stats().scheduler.preemptions, 0u) << layout;
  }
}

TEST_P(EngineWindow, EveryLayout) {
  for (const char* layout : {"tensor=2", "pipeline=2", "tensor=3,pipeline=2"}) {
    auto options = options_of(layout);
    options.max_chunk = 40;
    EngineWorld world(options);
    expect_baseline(world.run(requests()), layout);
    expect_baseline(world.run(requests()), std::string(layout) + " again");
  }
}

// The figures of every step, as the engine's own thread sees them.
TEST_P(EngineWindow, BlocksBehindTheWindowAreFreed) {
  auto options = options_of("tensor=1");
  options.max_chunk = 16;
  EngineWorld world(options);
  Sequence sequence = random_sequence(4, kVocab, 100, 80, false);
  sequence.id = 1;
  int64_t positions = 100;
  int64_t peak = 0;
  std::promise<void> over;
  world.engine().set_sink([&](std::vector<EngineEvent>&& events) {
    const EngineStats stats = world.engine().stats();
    for (const EngineEvent& event : events) {
      positions += event.token >= 0;
      if (event.finish != FinishReason::kNone) over.set_value();
    }
    const int64_t everything = (positions + 15) / 16;
    const int64_t window = (kWindow + 16 + 15) / 16 + 1;  // with a chunk ahead, at any offset
    EXPECT_LE(stats.scheduler.kv.used, everything + window) << "at " << positions;
    peak = std::max(peak, stats.scheduler.kv.used);
  });
  ASSERT_TRUE(world.engine().submit({sequence}));
  over.get_future().wait();
  world.engine().set_sink(nullptr);  // the last step's call has returned
  EXPECT_EQ(positions, 180);
  EXPECT_GE(peak, 12 + 2);  // all of the first group's, the window's of the second
  EXPECT_EQ(world.engine().stats().scheduler.kv.used, 0);
}

}  // namespace
}  // namespace trireme
