// Spans, clocks, rows and the picture: what is recorded, and what is made of it.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "base/spans.h"
#include "runtime/trace/chrome_trace.h"
#include "runtime/trace/device_track.h"
#include "runtime/trace/intervals.h"
#include "runtime/trace/overlap.h"
#include "runtime/trace/request_log.h"
#include "runtime/trace/timeline.h"

namespace trireme {
namespace {

TEST(Spans, BelongToTheStepThatTheyLeadTo) {
  SpanRecorder recorder({2, 2}, 16);
  recorder.add(SpanKind::kWait, 0, 1);  // before the run
  recorder.leave();
  recorder.add(SpanKind::kPlan, 1, 2);
  recorder.enter(1);  // not in the window
  recorder.add(SpanKind::kLayers, 2, 3);
  recorder.leave();
  recorder.add(SpanKind::kPlan, 3, 4);
  recorder.enter(2);
  recorder.add(SpanKind::kLayers, 4, 5);
  recorder.leave();
  recorder.enter(3);
  recorder.add(SpanKind::kLayers, 5, 6);
  recorder.leave();
  recorder.add(SpanKind::kResult, 6, 7);
  recorder.enter(4);
  recorder.add(SpanKind::kLayers, 7, 8);
  const std::vector<Span> spans = recorder.recorded();
  ASSERT_EQ(spans.size(), 3u);
  EXPECT_EQ(spans[0].begin, 3);
  EXPECT_EQ(spans[0].step, 2u);
  EXPECT_EQ(spans[1].begin, 4);
  EXPECT_EQ(spans[2].begin, 5);
  EXPECT_EQ(spans[2].step, 3u);
  EXPECT_EQ(recorder.dropped(), 0u);
}

TEST(Spans, AFullRecorderCounts) {
  SpanRecorder recorder({1, 100}, 3);
  recorder.leave();
  recorder.enter(1);
  for (int i = 0; i < 5; ++i) recorder.add(SpanKind::kSend, i, i + 1);
  EXPECT_EQ(recorder.recorded().size(), 3u);
  EXPECT_EQ(recorder.dropped(), 2u);
  const SpanScope nobody(nullptr, SpanKind::kSend);
}

TEST(Intervals, SetsOfTimes) {
  const Intervals a = unite({{5, 8}, {0, 2}, {1, 3}, {3, 3}, {8, 9}});
  EXPECT_EQ(a, (Intervals{{0, 3}, {5, 9}}));
  const Intervals b{{2, 6}, {7, 8}};
  EXPECT_EQ(intersect(a, b), (Intervals{{2, 3}, {5, 6}, {7, 8}}));
  EXPECT_EQ(subtract(a, b), (Intervals{{0, 2}, {6, 7}, {8, 9}}));
  EXPECT_EQ(subtract(b, {}), b);
  EXPECT_EQ(length(a), 7);
}

TEST(Clock, DriftsBetweenTwoMeasurements) {
  const ClockOffset early{1000, 50, 2}, late{2000, 70, 3};
  EXPECT_EQ(on_first_rank(1000, early, late), 1050);
  EXPECT_EQ(on_first_rank(1500, early, late), 1560);
  EXPECT_EQ(on_first_rank(2000, early, late), 2070);
  EXPECT_EQ(on_first_rank(1500, early, early), 1550);
}

TEST(Clock, RanksOfAProcessHaveOne) {
  auto ranks = make_thread_communicators(3, "control");
  std::vector<ClockOffset> offsets(3);
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < 3; ++rank) {
    threads.emplace_back([&, rank] { offsets[rank] = align_clock(*ranks[rank]); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const ClockOffset& offset : offsets) EXPECT_EQ(offset.offset, 0);
  EXPECT_EQ(offsets[0].error, 0);
  EXPECT_GT(offsets[1].error, 0);
}

Span span_of(SpanKind kind, int64_t begin, int64_t end, uint64_t step,
             SpanLink link = SpanLink::kNone, int32_t peer = -1) {
  Span span;
  span.kind = kind;
  span.begin = begin;
  span.end = end;
  span.step = step;
  span.link = link;
  span.peer = peer;
  return span;
}

RankTrack track_of(int rank, int stage, std::vector<Span> spans) {
  RankTrack track;
  track.rank = rank;
  track.stage = stage;
  track.host = "host";
  track.host_spans = std::move(spans);
  return track;
}

// "begin-end" of the segments of a lane.
std::string lane(const RankRows& rows, Lane wanted) {
  std::string text;
  for (const Segment& segment : rows.segments) {
    if (segment.lane != wanted) continue;
    text += (text.empty() ? "" : " ") + std::to_string(segment.span.begin) + "-" +
            std::to_string(segment.span.end);
  }
  return text;
}

TEST(Timeline, ACollectiveBeginsWithItsLastRank) {
  const std::vector<RankTrack> tracks = {
      track_of(0, 0,
               {span_of(SpanKind::kAllReduce, 10, 30, 1, SpanLink::kTensor),
                span_of(SpanKind::kLayers, 0, 40, 1)}),
      track_of(1, 0,
               {span_of(SpanKind::kAllReduce, 25, 31, 1, SpanLink::kTensor),
                span_of(SpanKind::kLayers, 2, 44, 1)})};
  const auto rows = cut_rows(tracks);
  EXPECT_EQ(lane(rows[0], Lane::kCompute), "0-10 30-40");
  EXPECT_EQ(lane(rows[0], Lane::kIdle), "10-25");
  EXPECT_EQ(lane(rows[0], Lane::kCommunication), "25-30");
  EXPECT_EQ(lane(rows[0], Lane::kStep), "0-40");
  EXPECT_EQ(lane(rows[1], Lane::kIdle), "");
  EXPECT_EQ(lane(rows[1], Lane::kCommunication), "25-31");
}

TEST(Timeline, AMessageIsReceivedFromWhenItWasSent) {
  const std::vector<RankTrack> tracks = {
      track_of(0, 0,
               {span_of(SpanKind::kSend, 20, 24, 1, SpanLink::kData, 1),
                span_of(SpanKind::kLayers, 0, 24, 1)}),
      track_of(1, 1,
               {span_of(SpanKind::kWait, 2, 8, 1, SpanLink::kControl, 0),
                span_of(SpanKind::kPrepare, 9, 10, 1),
                span_of(SpanKind::kReceive, 10, 26, 1, SpanLink::kData, 0),
                span_of(SpanKind::kLayers, 10, 50, 1)})};
  const auto rows = cut_rows(tracks);
  EXPECT_EQ(lane(rows[0], Lane::kCommunication), "20-24");
  EXPECT_EQ(lane(rows[1], Lane::kCommunication), "20-26");
  EXPECT_EQ(lane(rows[1], Lane::kIdle), "2-8 8-9 10-20");
  EXPECT_EQ(lane(rows[1], Lane::kStep), "9-50");
}

// Without the other side's record nobody can tell how much of it was waiting.
TEST(Timeline, AnOperationWithoutItsPeersCountsWhole) {
  const std::vector<RankTrack> tracks = {
      track_of(0, 0, {span_of(SpanKind::kLayers, 0, 5, 1)}),
      track_of(1, 1, {span_of(SpanKind::kReceive, 10, 26, 1, SpanLink::kData, 0)})};
  EXPECT_EQ(lane(cut_rows(tracks)[1], Lane::kCommunication), "10-26");
}

// Steps of a device overlap with messages on streams of their own.
TEST(Timeline, ADeviceHidesCommunicationUnderComputing) {
  RankTrack track =
      track_of(0, 0,
               {span_of(SpanKind::kLayers, 0, 3, 1), span_of(SpanKind::kLayers, 3, 6, 2),
                span_of(SpanKind::kLayers, 6, 9, 3)});
  track.device_spans = {
      span_of(SpanKind::kLayers, 5, 105, 1), span_of(SpanKind::kSend, 105, 125, 1),
      span_of(SpanKind::kLayers, 110, 210, 2), span_of(SpanKind::kSend, 210, 230, 2),
      span_of(SpanKind::kLayers, 240, 340, 3)};
  const std::vector<RankTrack> tracks{track};
  const auto rows = cut_rows(tracks);
  EXPECT_EQ(lane(rows[0], Lane::kHost), "0-3 3-6 6-9");
  EXPECT_EQ(lane(rows[0], Lane::kCompute), "5-105 110-210 240-340");
  EXPECT_EQ(lane(rows[0], Lane::kSend), "105-125 210-230");
  EXPECT_EQ(lane(rows[0], Lane::kIdle), "230-240");
  EXPECT_EQ(lane(rows[0], Lane::kStep), "5-105 110-210 240-340");
  const auto overlap = measure_overlap(rows, 1, 3);
  ASSERT_EQ(overlap.size(), 1u);
  EXPECT_NEAR(overlap[0].step, 117.5e-9, 1e-15);
  EXPECT_NEAR(overlap[0].compute, 100e-9, 1e-15);
  EXPECT_NEAR(overlap[0].communication, 20e-9, 1e-15);
  EXPECT_NEAR(overlap[0].exposed, 12.5e-9, 1e-15);
  EXPECT_NEAR(overlap[0].idle, 5e-9, 1e-15);
  EXPECT_NEAR(overlap[0].bubble(), 10.0 / 235, 1e-12);
  EXPECT_THROW(measure_overlap(rows, 1, 4), Error);
}

DeviceStamp stamp_of(int64_t time, DevicePart part, uint8_t stream = 0) {
  return {time, part, stream};
}

// Steps 8 to 10, the begin of the first of them lost.
DeviceTimes three_steps() {
  DeviceTimes times;
  times.stamps = {stamp_of(100, DevicePart::kNothing),    stamp_of(110, DevicePart::kLayers),
                  stamp_of(150, DevicePart::kNothing),    stamp_of(152, DevicePart::kSample),
                  stamp_of(160, DevicePart::kNothing),    stamp_of(170, DevicePart::kLayers),
                  stamp_of(210, DevicePart::kNothing),    stamp_of(100, DevicePart::kReceive, 1),
                  stamp_of(104, DevicePart::kNothing, 1), stamp_of(155, DevicePart::kReceive, 1),
                  stamp_of(165, DevicePart::kNothing, 1), stamp_of(220, DevicePart::kReceive, 1)};
  return times;
}

TEST(DeviceTrack, StampsBecomeSpansOfTheirSteps) {
  const auto spans = device_spans(three_steps(), 10, {9, 2}, 3, {});
  ASSERT_EQ(spans.size(), 4u);
  EXPECT_EQ(spans[0].kind, SpanKind::kLayers);
  EXPECT_EQ(spans[0].step, 9u);
  EXPECT_EQ(spans[0].begin, 110);
  EXPECT_EQ(spans[0].end, 150);
  EXPECT_EQ(spans[1].kind, SpanKind::kSample);
  EXPECT_EQ(spans[1].step, 9u);
  EXPECT_EQ(spans[2].step, 10u);
  EXPECT_EQ(spans[3].kind, SpanKind::kReceive);  // step 8's is not asked for, step 10's has no end
  EXPECT_EQ(spans[3].step, 9u);
  EXPECT_EQ(spans[3].begin, 155);
  EXPECT_EQ(spans[3].peer, 3);
}

TEST(DeviceTrack, IdleIsWhatIsNeitherLayersNorSampling) {
  EXPECT_NEAR(idle_share(three_steps(), 10, 1, 10), 12.0 / 60, 1e-12);
  EXPECT_THROW(idle_share(three_steps(), 10, 2, 10), Error);
  EXPECT_THROW(idle_share(three_steps(), 10, 1, 11), Error);
}

PlanRow row_of(SlotId slot, int32_t position, int32_t count) {
  PlanRow row;
  row.slot = slot;
  row.position = position;
  row.count = count;
  return row;
}

StepPlan plan_of(uint64_t step, std::vector<PlanRow> rows, std::vector<SlotId> admitted) {
  StepPlan plan;
  plan.step = step;
  plan.rows = std::move(rows);
  for (const SlotId slot : admitted) {
    plan.admitted.emplace_back();
    plan.admitted.back().slot = slot;
    plan.admitted.back().prompt_tokens = 6;
  }
  return plan;
}

TEST(RequestLog, TellsALife) {
  RequestLog log({1, 10}, 100);
  log.submitted(7);
  log.submitted(8);
  RowResult result;
  const auto event = [&](SequenceId id, SlotId slot) {
    result.slot = slot;
    return SequenceEvent{.id = id, .row = &result};
  };
  log.planned(plan_of(1, {row_of(3, 0, 4)}, {3}));
  log.planned(plan_of(2, {row_of(3, 4, 2)}, {}));  // the next chunk, while the first is in flight
  log.applied(1, {});
  SequenceEvent told = event(7, 3);
  log.applied(2, {&told, 1});
  log.planned(plan_of(3, {row_of(3, 6, 1), row_of(4, 0, 6)}, {4}));
  told = event(7, 3);
  log.applied(3, {&told, 1});
  log.planned(plan_of(4, {row_of(4, 6, 1)}, {}));  // in flight at the end: not there yet
  const std::vector<RequestLife> lives = log.lives();
  ASSERT_EQ(lives.size(), 1u);  // nothing has told who slot 4 is
  EXPECT_EQ(lives[0].id, 7u);
  ASSERT_EQ(lives[0].spans.size(), 4u);
  const RequestPhase phases[] = {RequestPhase::kQueued, RequestPhase::kPrefill,
                                 RequestPhase::kPrefill, RequestPhase::kDecode};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(lives[0].spans[i].phase, phases[i]);
    EXPECT_LE(lives[0].spans[i].begin, lives[0].spans[i].end);
    if (i > 0) {
      EXPECT_LE(lives[0].spans[i - 1].end, lives[0].spans[i].begin);
    }
  }
  EXPECT_EQ(lives[0].spans[2].position, 4);
}

TEST(ChromeTrace, IsJsonWithARowForEachLane) {
  const std::vector<RankTrack> tracks = {
      track_of(0, 0,
               {span_of(SpanKind::kSend, 20'000, 24'000, 1, SpanLink::kData, 1),
                span_of(SpanKind::kLayers, 1'000, 24'000, 1)})};
  RequestLife life{12, {{RequestPhase::kPrefill, 1'000, 30'000, 1, 0, 64}}};
  std::ostringstream out;
  write_chrome_trace(out, cut_rows(tracks), {life}, {{"layout", "a \"quoted\"\n\\ name"}});
  const auto json = nlohmann::json::parse(out.str());
  EXPECT_EQ(json["otherData"]["layout"], "a \"quoted\"\n\\ name");
  std::map<std::string, nlohmann::json> events;
  for (const auto& event : json["traceEvents"]) events[event["name"]] = event;
  EXPECT_EQ(events["layers"]["ph"], "X");
  EXPECT_EQ(events["layers"]["ts"], 0.0);
  EXPECT_EQ(events["layers"]["dur"], 19.0);
  EXPECT_EQ(events["data send to 1"]["ts"], 19.0);
  EXPECT_EQ(events["step 1"]["args"]["step"], 1);
  EXPECT_EQ(events["prefill 0-64"]["tid"], 12);
  EXPECT_NE(events["prefill 0-64"]["pid"], events["layers"]["pid"]);
  EXPECT_TRUE(events.contains("thread_name"));
}

}  // namespace
}  // namespace trireme
