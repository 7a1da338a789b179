// The ledger: what its ring keeps, what a reader beside the writer sees, and that the communicators
// of a world write everything down.
#include "parallel/ledger.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "base/error.h"
#include "parallel/ledger_communicator.h"
#include "parallel/world.h"
#include "tests/support/model_shapes.h"
#include "tests/support/run_ranks.h"

namespace trireme {
namespace {

LedgerCall call(LedgerOp op, uint64_t bytes, int32_t peer = -1, uint64_t number = 0) {
  LedgerCall made;
  made.op = op;
  made.bytes = bytes;
  made.peer = peer;
  made.number = number;
  return made;
}

TEST(Ledger, KeepsWhatWasWritten) {
  Ledger ledger;
  const int16_t group = ledger.add_group("tp", {2, 3});
  ledger.begin_step(812, 0xfeed);
  LedgerCall sum{LedgerOp::kAllReduce, DType::kBF16, group, -1, 512, 7};
  ledger.begin(sum);
  ledger.end();
  ledger.begin(call(LedgerOp::kReceive, 99, 1));
  const LedgerView view = ledger.view();
  ASSERT_EQ(view.operations.size(), 2u);
  const LedgerRecord& first = view.operations[0];
  EXPECT_EQ(first.sequence, 1u);
  EXPECT_EQ(first.step, 812u);
  EXPECT_EQ(first.plan, 0xfeedu);
  EXPECT_EQ(first.call.op, LedgerOp::kAllReduce);
  EXPECT_EQ(first.call.dtype, DType::kBF16);
  EXPECT_EQ(first.call.group, group);
  EXPECT_EQ(first.call.peer, -1);
  EXPECT_EQ(first.call.bytes, 512u);
  EXPECT_EQ(first.call.number, 7u);
  EXPECT_GT(first.begin, 0);
  EXPECT_GE(first.end, first.begin);
  EXPECT_EQ(view.operations[1].call.peer, 1);
  EXPECT_EQ(view.operations[1].end, 0);  // under way
  EXPECT_GE(view.now, view.operations[1].begin);
  EXPECT_EQ(ledger.groups()[static_cast<size_t>(group)].ranks, (std::vector<int32_t>{2, 3}));
}

TEST(Ledger, TheRingKeepsTheLast) {
  Ledger ledger;
  for (uint64_t i = 1; i <= 3 * Ledger::kOperations + 5; ++i) {
    ledger.begin(call(LedgerOp::kSend, i, 0));
    ledger.end();
  }
  const LedgerView all = ledger.view();
  ASSERT_EQ(all.operations.size(), Ledger::kOperations);
  for (size_t i = 0; i < all.operations.size(); ++i) {
    EXPECT_EQ(all.operations[i].call.bytes, 2 * Ledger::kOperations + 6 + i);
    EXPECT_EQ(all.operations[i].sequence, all.operations[i].call.bytes);
  }
  const LedgerView last = ledger.view(3);
  ASSERT_EQ(last.operations.size(), 3u);
  EXPECT_EQ(last.operations[2].call.bytes, 3 * Ledger::kOperations + 5);
}

// A graph's operations are put on a tape where they are captured, and written down, with the
// numbers that follow, where it is replayed.
TEST(Ledger, PlaysWhatWasRecorded) {
  Ledger ledger;
  const int16_t sums = ledger.add_group("device tp", {0, 1});
  const int16_t edge = ledger.add_group("device outgoing", {0, 2});
  const auto sum = [&](uint64_t bytes) {
    ledger.begin(
        {LedgerOp::kAllReduce, DType::kBF16, sums, -1, bytes, ledger.next_number(sums), true});
    ledger.end();
  };
  std::vector<LedgerCall> tape;
  ledger.begin_step(1, 10);
  sum(8);
  ledger.record(&tape);
  sum(16);
  ledger.begin({LedgerOp::kSend, DType::kF32, edge, 1, 32, 0});
  ledger.end();
  ledger.record(nullptr);
  sum(64);
  ASSERT_EQ(tape.size(), 2u);
  ledger.begin_step(2, 20);
  ledger.play(tape);
  ledger.begin_step(3, 30);
  const LedgerView view = ledger.view();
  ASSERT_EQ(view.operations.size(), 6u);
  const LedgerRecord& again = view.operations[4];
  EXPECT_EQ(again.call.number, 4u);
  EXPECT_EQ(again.call.bytes, 16u);
  EXPECT_EQ(again.call.dtype, DType::kBF16);
  EXPECT_EQ(again.step, 2u);
  EXPECT_GT(again.end, 0);
  EXPECT_EQ(view.operations[5].call.op, LedgerOp::kSend);
  EXPECT_EQ(view.operations[5].call.peer, 1);
  EXPECT_EQ(view.operations[5].call.number, 0u);
  EXPECT_EQ(tape.size(), 2u);  // what is played is not recorded
  // Sends do not count: ranks of a stage may send to different peers.
  EXPECT_EQ(view.steps[0].queued, 0u);
  EXPECT_EQ(view.steps[1].queued, 3u);
  EXPECT_EQ(view.steps[2].queued, 4u);
}

TEST(Ledger, HasSoManyGroups) {
  Ledger ledger;
  for (size_t i = 0; i < Ledger::kGroups; ++i) ledger.add_group("one", {0});
  EXPECT_THROW(ledger.add_group("too many", {0}), Error);
}

TEST(Ledger, StepsMayOverlap) {
  Ledger ledger;
  for (uint64_t step = 1; step <= 2 * Ledger::kSteps; ++step) {
    ledger.begin_step(step, step * 10);
    if (step > 2) ledger.end_step(step - 2);
  }
  const LedgerView view = ledger.view();
  ASSERT_EQ(view.steps.size(), Ledger::kSteps);
  EXPECT_EQ(view.steps.front().step, Ledger::kSteps + 1);
  EXPECT_EQ(view.steps.back().step, 2 * Ledger::kSteps);
  EXPECT_EQ(view.steps.back().plan, 20 * Ledger::kSteps);
  for (size_t i = 0; i < view.steps.size(); ++i) {
    EXPECT_EQ(view.steps[i].end == 0, i + 2 >= view.steps.size()) << i;
  }
  ledger.end_step(999);  // unknown: nothing changes
  EXPECT_EQ(ledger.view().steps.back().end, 0);
}

TEST(Ledger, MarksReachFurtherBackThanSteps) {
  Ledger ledger;
  const int16_t sums = ledger.add_group("device tp", {0, 1});
  constexpr uint64_t kLast = Ledger::kSteps * (Ledger::kSteps + 3) + 5;
  for (uint64_t step = 1; step <= kLast; ++step) {
    ledger.begin_step(step, step * 10);
    ledger.begin({LedgerOp::kAllReduce, DType::kBF16, sums, -1, 8, ledger.next_number(sums), true});
    ledger.end();
    ledger.end_step(step);
  }
  const LedgerView view = ledger.view();
  ASSERT_EQ(view.marks.size(), Ledger::kSteps);
  for (size_t i = 0; i < view.marks.size(); ++i) {
    const LedgerStep& mark = view.marks[i];
    EXPECT_EQ(mark.step, (i + 4) * Ledger::kSteps);
    EXPECT_EQ(mark.plan, mark.step * 10);
    EXPECT_EQ(mark.queued, mark.step - 1);
    EXPECT_GT(mark.begin, 0);
  }
  // Of all that is at most so many steps older, the last one has a mark in common.
  EXPECT_LE(view.marks.front().step + Ledger::kSteps * (Ledger::kSteps - 1), kLast);
  EXPECT_EQ(view.steps.front().step, kLast - Ledger::kSteps + 1);
}

// Every word of an entry is a function of its sequence number: a torn one would show.
TEST(Ledger, AReaderNeverSeesAHalfWrittenEntry) {
  Ledger ledger;
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (uint64_t i = 1; !stop; ++i) {
      ledger.begin_step(i, i * 3);
      ledger.begin({LedgerOp::kAllReduce, DType::kF16, static_cast<int16_t>(i % 1000),
                    static_cast<int32_t>(i % 100'000), i * 7, i * 11});
      ledger.end();
      ledger.end_step(i);
    }
  });
  uint64_t seen = 0, torn = 0;
  for (int views = 0; views < 15000 || seen < 100'000; ++views) {
    const LedgerView view = ledger.view();
    uint64_t before = 0;
    for (const LedgerRecord& record : view.operations) {
      const uint64_t i = record.sequence;
      const bool whole = i > before && record.step == i && record.plan == i * 3 &&
                         record.call.bytes == i * 7 && record.call.number == i * 11 &&
                         record.call.peer == static_cast<int32_t>(i % 100'000) &&
                         record.call.group == static_cast<int16_t>(i % 1000);
      before = i;
      ++(whole ? seen : torn);
    }
    for (const LedgerStep& step : view.steps) torn += step.plan != step.step * 3;
    for (const LedgerStep& mark : view.marks) torn += mark.plan != mark.step * 3;
  }
  stop = true;
  writer.join();
  EXPECT_EQ(torn, 0u);
}

struct Expected {
  std::function<void(Communicator&)> run;
  LedgerOp op;
  uint64_t bytes;
  int32_t peer;
};

TEST(LedgerCommunicator, WritesEveryOperationDown) {
  run_ranks(2, [&](Communicator& ranks) {
    float mine = 1;
    std::byte in_bytes[8]{}, gathered[16]{};
    const int other = 1 - ranks.rank();
    const Expected cases[] = {
        {[&](Communicator& c) { c.all_reduce_sum(std::span(&mine, 1)); }, LedgerOp::kAllReduce, 4,
         -1},
        {[&](Communicator& c) { c.all_gather(in_bytes, gathered); }, LedgerOp::kAllGather, 8, -1},
        {[&](Communicator& c) { c.broadcast(in_bytes, 1); }, LedgerOp::kBroadcast, 8, 1},
        {[&](Communicator& c) { c.barrier(); }, LedgerOp::kBarrier, 0, -1},
        {[&](Communicator& c) { c.split(0, "part"); }, LedgerOp::kSplit, 0, -1},
        {[&](Communicator& c) { c.send(in_bytes, other, 3); }, LedgerOp::kSend, 8, other},
        {[&](Communicator& c) { c.probe(other, 3, Wait::kDeadline); }, LedgerOp::kProbe, 0, other},
        {[&](Communicator& c) { c.probe(other, 3, Wait::kForever); }, LedgerOp::kIdle, 0, other},
        {[&](Communicator& c) { c.recv(in_bytes, other, 3); }, LedgerOp::kReceive, 8, other},
    };
    Ledger ledger;
    auto written = make_ledger_communicator(ranks.split(0, "whole"), ledger, {0, 1});
    EXPECT_EQ(ledger.groups()[0].name, "whole");
    size_t count = 0;
    for (const Expected& one : cases) {
      one.run(*written);
      const LedgerView view = ledger.view();
      ASSERT_EQ(view.operations.size(), ++count);
      const LedgerRecord& record = view.operations.back();
      EXPECT_EQ(record.call.op, one.op);
      EXPECT_EQ(record.call.bytes, one.bytes) << to_string(one.op);
      EXPECT_EQ(record.call.peer, one.peer) << to_string(one.op);
      EXPECT_EQ(record.call.number, is_collective(one.op) ? count : 0) << to_string(one.op);
      EXPECT_GT(record.end, 0) << to_string(one.op);
    }
    written->probe(other, 3, Wait::kNever);
    EXPECT_EQ(ledger.view().operations.size(), count);
  });
}

TEST(LedgerCommunicator, AnOperationThatFailsIsLeftOpen) {
  auto group = make_thread_communicators(2, "tp");
  Ledger ledger;
  auto written = make_ledger_communicator(std::move(group[0]), ledger, {0, 1});
  written->set_deadline(std::chrono::milliseconds(20));
  EXPECT_THROW(written->barrier(), Error);
  EXPECT_EQ(ledger.view().operations.back().end, 0);
}

TEST(LedgerCommunicator, AWorldHasOne) {
  auto ranks = make_thread_communicators(3, "control");
  std::vector<std::thread> threads;
  for (auto& control : ranks) {
    threads.emplace_back([control = std::move(control)]() mutable {
      World world =
          make_world(std::move(control), make_layout({{{2, 0}, {1, 0}}}, small_shape(), 3));
      const auto groups = world.ledger->groups();
      EXPECT_EQ(groups.size(), world.first_stage() ? 3u : 2u);  // nobody is with rank 2 in `tp`
      if (world.first_stage()) {
        EXPECT_EQ(groups[2].ranks, (std::vector<int32_t>{0, 1}));
        world.tp->barrier();
        EXPECT_EQ(world.ledger->view().operations.back().call.group, 2);
      }
      world.control->barrier();
      EXPECT_EQ(groups[0].name, "control");
      EXPECT_EQ(world.ledger->view().operations.back().call.group, 0);
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace trireme
