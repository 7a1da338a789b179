// Load on a real server before a scripted engine; the report's figures and forms.
#include "clients/load_generator.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "runtime/coordinator.h"
#include "tests/unit/scripted_engine.h"

namespace trireme::test {
namespace {

using namespace std::chrono_literals;

class Load : public ::testing::Test {
 protected:
  void start(size_t capacity) {
    engine_.emplace(nullptr, capacity);
    FrontendConfig frontend;
    frontend.vocab = kVocab;
    frontend.max_context = 256;
    frontend_.emplace(*engine_, &tokenizer_, frontend);
    CoordinatorConfig listen;
    listen.listen = "127.0.0.1:0";
    coordinator_.emplace(listen);
    coordinator_->serve(*frontend_, *engine_, {});
    engine_->start(200us);
  }
  ~Load() override {
    if (engine_) engine_->stop();
  }

  LoadConfig config() const {
    LoadConfig config;
    config.server = "127.0.0.1:" + std::to_string(coordinator_->port());
    config.requests = 40;
    config.prompt = {10, 20, {}};
    config.output = {5, 5, {}};
    return config;
  }

  const Tokenizer tokenizer_ = byte_tokenizer();
  std::optional<ScriptedEngine> engine_;
  std::optional<Frontend> frontend_;
  std::optional<Coordinator> coordinator_;
};

TEST_F(Load, ClosedLoopKeepsItsConcurrency) {
  start(4);  // a fifth request at once would be refused
  LoadConfig four = config();
  four.concurrency = 4;
  int told = 0;
  const LoadReport report = run_load(four, [&](int ended, int all) {
    EXPECT_EQ(all, 40);
    told = ended;
  });
  EXPECT_EQ(told, 40);
  EXPECT_EQ(report.ok, 40);
  EXPECT_EQ(report.failed, 0);
  EXPECT_EQ(report.output_tokens, 200);
  EXPECT_GE(report.prompt_tokens, 400);
  EXPECT_LE(report.prompt_tokens, 800);
  EXPECT_GT(report.duration, 0);
  EXPECT_LE(report.ttft.p50, report.ttft.p99);
  EXPECT_LE(report.ttft.p99, report.latency.max);
  for (const RequestSample& sample : report.samples) {
    EXPECT_EQ(sample.output_tokens, 5);
    EXPECT_EQ(sample.times.size(), 5u);
    EXPECT_LE(sample.sent, sample.first);
    EXPECT_LE(sample.first, sample.end);
  }
  EXPECT_EQ(engine_->seen().size(), 44u);  // the warm-up's are in no figure
}

TEST_F(Load, PoissonCountsRefusalsAsErrors) {
  start(1);
  LoadConfig burst = config();
  burst.rate = 5000;
  burst.warmup = 0;
  const LoadReport report = run_load(burst);
  EXPECT_EQ(report.ok + report.failed, 40);
  EXPECT_GT(report.failed, 0);
  EXPECT_GT(report.ok, 0);
  ASSERT_FALSE(report.errors.empty());
  EXPECT_NE(report.errors[0].first.find("queue is full"), std::string::npos);
}

TEST_F(Load, TheSameSeedSendsTheSameRequests) {
  start(1000);
  LoadConfig one = config();
  one.requests = 5;
  one.warmup = 0;
  one.concurrency = 1;
  run_load(one);
  run_load(one);
  const auto seen = engine_->seen();
  ASSERT_EQ(seen.size(), 10u);
  for (int i = 0; i < 5; ++i) {
    const auto prompt = [&](int at) {
      return std::vector<int32_t>(seen[at].tokens.begin(), seen[at].tokens.end());
    };
    EXPECT_EQ(prompt(i), prompt(i + 5));
    EXPECT_EQ(seen[i].sampling.seed, seen[i + 5].sampling.seed);
  }
}

TEST_F(Load, TextsAndSharedPrefixesMakePrompts) {
  start(1000);
  const auto path =
      std::filesystem::temp_directory_path() / ("trireme_text_" + std::to_string(getpid()));
  std::ofstream(path) << "xyzxyzxyzxyzxyz";
  LoadConfig text = config();
  text.text_file = path;
  text.share_prefix = 0.5;
  text.prompt = {16, 16, {}};
  run_load(text);
  std::filesystem::remove(path);
  const auto seen = engine_->seen();
  for (const Sequence& sequence : seen) {
    for (const int32_t token : sequence.tokens) EXPECT_TRUE(token >= 'x' && token <= 'z');
    EXPECT_TRUE(
        std::equal(sequence.tokens.begin(), sequence.tokens.begin() + 8, seen[0].tokens.begin()));
  }
}

TEST_F(Load, WhatCannotBeIsRefused) {
  start(10);
  LoadConfig big = config();
  big.prompt = {10, 300, {}};
  EXPECT_THROW(run_load(big), Error);
  LoadConfig none = config();
  none.requests = 0;
  EXPECT_THROW(run_load(none), Error);
  LoadConfig nowhere = config();
  nowhere.server = "127.0.0.1:1";
  EXPECT_THROW(run_load(nowhere), Error);
}

TEST_F(Load, ReportsAreWellFormed) {
  start(1000);
  const LoadReport report = run_load(config());
  const std::string line = to_json(report);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["ok"], 40);
  for (const char* figure :
       {"ttft_ms", "time_per_output_token_ms", "inter_token_latency_ms", "latency_ms"}) {
    for (const char* p : {"p50", "p90", "p99"}) EXPECT_GT(json[figure][p], 0.0) << figure;
  }
  const std::string svg = to_svg(report);
  EXPECT_TRUE(svg.starts_with("<svg"));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  for (const char* label : {"Time to first token", "End-to-end latency", "Throughput"}) {
    EXPECT_NE(svg.find(label), std::string::npos);
  }
  EXPECT_NE(to_text(report).find("end-to-end latency"), std::string::npos);
  LoadReport empty;  // every request failed
  EXPECT_EQ(to_svg(empty).find("nan"), std::string::npos);
  EXPECT_FALSE(nlohmann::json::parse(to_json(empty)).empty());
}

TEST(Lengths, AreParsed) {
  EXPECT_EQ(parse_lengths("x", "7").high, 7);
  EXPECT_EQ(parse_lengths("x", "3-9").low, 3);
  EXPECT_EQ(parse_lengths("x", "3-9").high, 9);
  const auto path =
      std::filesystem::temp_directory_path() / ("trireme_lengths_" + std::to_string(getpid()));
  std::ofstream(path) << "5 6\n7\n";
  EXPECT_EQ(parse_lengths("x", "@" + path.string()).values, (std::vector<int32_t>{5, 6, 7}));
  std::ofstream(path) << "5 x";
  EXPECT_THROW(parse_lengths("x", "@" + path.string()), Error);
  std::filesystem::remove(path);
  for (const char* bad :
       {"", "0", "-3", "3-", "9-3", "a", "3-4-5", "@", "@/nowhere", "99999999999"}) {
    EXPECT_THROW(parse_lengths("x", bad), Error) << bad;
  }
}

TEST(PercentileRule, IsTheNearestRank) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  const Percentiles p = percentiles(values);
  EXPECT_EQ(p.p50, 50);
  EXPECT_EQ(p.p90, 90);
  EXPECT_EQ(p.p99, 99);
  EXPECT_EQ(p.max, 100);
  EXPECT_EQ(p.mean, 50.5);
  EXPECT_EQ(percentiles({3.0}).p50, 3.0);
  EXPECT_EQ(percentiles({}).p99, 0.0);
}

}  // namespace
}  // namespace trireme::test
