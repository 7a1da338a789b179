// A served load on ranks that are threads, recorded: every step on every rank, nothing twice.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>

#include "runtime/trace/chrome_trace.h"
#include "runtime/trace/overlap.h"
#include "tests/unit/engine_world.h"

namespace trireme {
namespace {

constexpr uint64_t kFirst = 3, kSteps = 20;

struct Recorded {
  std::vector<RankTrack> tracks;
  std::vector<RequestLife> lives;
  uint64_t dropped = 0;
};

// Each rank is brought up, works until the load has ended, and hands in its record.
Recorded record(const std::string& layout, int sequences, const std::string& look_ahead = "off") {
  InstanceOptions options = small_options("llama-plain", layout);
  options.record = {kFirst, kSteps};
  options.token_budget = 32;
  options.look_ahead = look_ahead;
  auto controls = make_thread_communicators(parse_layout(layout).world(), "control");
  Recorded recorded;
  std::vector<std::thread> threads;
  for (auto& control : controls) {
    threads.emplace_back([&, moved = std::move(control)]() mutable {
      Instance instance(std::move(moved), options);
      World& world = instance.world();
      const ClockOffset early = align_clock(*world.control);
      if (world.rank == 0) {
        Engine& engine = instance.engine();
        int ended = 0;
        engine.set_sink([&](std::vector<EngineEvent>&& events) {
          for (const EngineEvent& event : events) ended += event.finish != FinishReason::kNone;
          if (ended == sequences) engine.stop();
        });
        std::vector<Sequence> load;
        for (int i = 0; i < sequences; ++i) {
          load.push_back(random_sequence(static_cast<uint64_t>(i), 259, 20 + 5 * i, 24, false));
          load.back().id = static_cast<SequenceId>(i + 1);
        }
        ASSERT_TRUE(engine.submit(load));
        engine.run();
      } else {
        instance.worker().run();
      }
      RankRecord mine;
      mine.host_spans = instance.spans()->recorded();
      mine.dropped = instance.spans()->dropped();
      const ClockOffset late = align_clock(*world.control);
      std::vector<RankTrack> tracks = gather_tracks(world, mine, early, late);
      if (world.rank != 0) return;
      recorded.tracks = std::move(tracks);
      recorded.lives = instance.requests()->lives();
      recorded.dropped = instance.requests()->dropped();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return recorded;
}

class EngineTrace : public testing::TestWithParam<std::string> {};

TEST_P(EngineTrace, EveryStepIsOnEveryRankAndNothingOverlaps) {
  const Recorded recorded = record(GetParam(), 6);
  const auto ranks = static_cast<size_t>(parse_layout(GetParam()).world());
  ASSERT_EQ(recorded.tracks.size(), ranks);
  const std::vector<RankRows> rows = cut_rows(recorded.tracks);
  for (const RankRows& rank : rows) {
    SCOPED_TRACE(rank.track->rank);
    EXPECT_EQ(rank.track->dropped, 0u);
    std::set<uint64_t> steps, computed;
    std::map<Lane, int64_t> ends, sums;
    int64_t first = INT64_MAX, last = 0;
    for (const Segment& segment : rank.segments) {
      const Span& span = segment.span;
      EXPECT_LT(span.begin, span.end);
      EXPECT_TRUE((StepWindow{kFirst, kSteps}).contains(span.step));
      if (ends.contains(segment.lane)) {
        EXPECT_LE(ends[segment.lane], span.begin);
      }
      ends[segment.lane] = span.end;
      if (segment.lane == Lane::kStep) {
        steps.insert(span.step);
        continue;
      }
      sums[segment.lane] += span.end - span.begin;
      if (span.kind == SpanKind::kLayers) computed.insert(span.step);
      first = std::min(first, span.begin);
      last = std::max(last, span.end);
    }
    EXPECT_EQ(steps.size(), kSteps);
    EXPECT_EQ(computed, steps);
    EXPECT_EQ(*steps.begin(), kFirst);
    // Compute, communication and idle fill a rank's time, once.
    EXPECT_EQ(sums[Lane::kCompute] + sums[Lane::kCommunication] + sums[Lane::kIdle], last - first);
  }
  for (const StageOverlap& stage : measure_overlap(rows, kFirst, kFirst + kSteps - 1)) {
    EXPECT_GT(stage.compute, 0);
    EXPECT_GE(stage.idle, 0);
    EXPECT_LE(stage.exposed, stage.communication);
    EXPECT_NEAR(stage.compute + stage.exposed + stage.idle, stage.step, 1e-9);
    if (ranks > 1) {
      EXPECT_GT(stage.communication, 0);
    }
  }
}

TEST_P(EngineTrace, RequestsLiveInOrder) {
  const Recorded recorded = record(GetParam(), 6);
  EXPECT_EQ(recorded.dropped, 0u);
  EXPECT_EQ(recorded.lives.size(), 6u);
  for (const RequestLife& life : recorded.lives) {
    SCOPED_TRACE(life.id);
    int32_t next = 0;
    for (size_t i = 0; i < life.spans.size(); ++i) {
      const RequestSpan& span = life.spans[i];
      EXPECT_LE(span.begin, span.end);
      if (i > 0) {
        EXPECT_LE(life.spans[i - 1].end, span.begin);
      }
      if (span.phase == RequestPhase::kQueued) {
        EXPECT_EQ(i, 0u);
        continue;
      }
      if (next > 0) {
        EXPECT_EQ(span.position, next);  // no token twice, none left out
      }
      next = span.position + span.count;
      const int32_t prompt = 20 + 5 * static_cast<int32_t>(life.id - 1);
      EXPECT_EQ(span.phase == RequestPhase::kDecode, span.position >= prompt);
    }
  }
}

TEST_P(EngineTrace, ThePictureIsJson) {
  const Recorded recorded = record(GetParam(), 3);
  std::ostringstream out;
  write_chrome_trace(out, cut_rows(recorded.tracks), recorded.lives, {});
  const auto json = nlohmann::json::parse(out.str());
  std::set<std::pair<int, uint64_t>> named;
  std::map<std::pair<int, uint64_t>, double> ends;
  for (const auto& event : json["traceEvents"]) {
    const std::pair<int, uint64_t> row(event["pid"], event["tid"]);
    if (event["ph"] == "M") {
      if (event["name"] == "thread_name") named.insert(row);
      continue;
    }
    ASSERT_EQ(event["ph"], "X");
    EXPECT_TRUE(named.contains(row)) << event;
    EXPECT_GE(event["ts"].get<double>(), 0.0);
    if (ends.contains(row)) {
      EXPECT_GE(event["ts"].get<double>() + 2e-3, ends[row]) << event;
    }
    ends[row] = event["ts"].get<double>() + event["dur"].get<double>();
  }
  EXPECT_EQ(ends.size(), named.size());
}

INSTANTIATE_TEST_SUITE_P(Layouts, EngineTrace,
                         testing::Values("tensor=1", "tensor=2", "pipeline=2", "pipeline=3",
                                         "tensor=2,pipeline=2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase_if(name, [](char c) { return std::isalnum(c) == 0; });
                           return name;
                         });

TEST(EngineTraceOff, NothingIsRecordedUnlessAsked) {
  EngineWorld world(small_options("llama-plain", "pipeline=2"));
  EXPECT_EQ(world.instance().spans(), nullptr);
  EXPECT_EQ(world.instance().requests(), nullptr);
}

TEST(EngineTraceAhead, StepsThatOverlapAreRecordedToo) {
  const Recorded recorded = record("tensor=2", 4, "on");
  const auto rows = cut_rows(recorded.tracks);
  for (const RankRows& rank : rows) {
    std::set<uint64_t> steps;
    for (const Segment& segment : rank.segments) {
      if (segment.lane == Lane::kStep) steps.insert(segment.span.step);
    }
    EXPECT_EQ(steps.size(), kSteps);
  }
}

}  // namespace
}  // namespace trireme
