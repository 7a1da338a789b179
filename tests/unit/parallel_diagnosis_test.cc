// Which rank is to blame: reports of made-up worlds, and the one that diagnose() must name.
#include "parallel/diagnosis.h"

#include <gtest/gtest.h>

#include <functional>

namespace trireme {
namespace {

constexpr int64_t kSecond = 1'000'000'000, kNow = 100 * kSecond;

// Stage 0 is ranks 0, 1 and 2, stage 1 rank 3. Groups: control and tp (of stage 0).
class MadeWorld {
 public:
  MadeWorld() {
    for (int rank = 0; rank < 4; ++rank) {
      RankReport& report = reports_.emplace_back();
      report.rank = rank;
      report.stage = rank == 3 ? 1 : 0;
      report.tensor = rank % 3;
      report.host = "host" + std::to_string(rank);
      report.view.now = kNow;
      report.groups = {{"control", {0, 1, 2, 3}}};
      if (rank < 3) report.groups.push_back({"tp", {0, 1, 2}});
    }
  }
  RankReport& operator[](size_t rank) { return reports_[rank]; }

  // `age`: s since it began; it ended a second later, or has not.
  void step(size_t rank, uint64_t step, int64_t age, bool ended = false, uint64_t plan = 77) {
    const int64_t begin = kNow - age * kSecond;
    reports_[rank].view.steps.push_back({step, plan, begin, ended ? begin + kSecond : 0});
  }
  void sum(size_t rank, uint64_t number, int64_t age, bool ended, uint64_t bytes = 4096) {
    add(rank, {LedgerOp::kAllReduce, DType::kF32, 1, -1, bytes, number}, age, ended);
  }
  void add(size_t rank, LedgerCall call, int64_t age, bool ended) {
    LedgerRecord record;
    record.call = call;
    record.step = reports_[rank].view.steps.empty() ? 0 : reports_[rank].view.steps.back().step;
    record.begin = kNow - age * kSecond;
    record.end = ended ? record.begin + 1 : 0;
    record.sequence = reports_[rank].view.operations.size() + 1;
    reports_[rank].view.operations.push_back(record);
  }
  void idle(size_t rank, int64_t age) { add(rank, {LedgerOp::kIdle, {}, 0, 0, 0, 0}, age, false); }
  void receive(size_t rank, int32_t from, int64_t age) {
    add(rank, {LedgerOp::kReceive, {}, 0, from, 512, 0}, age, false);
  }
  // All tensor ranks have had sum 5, and are in 6 of step 12; rank 3 waits for rank 0's message.
  void all_in_sum_six() {
    for (size_t rank = 0; rank < 3; ++rank) {
      step(rank, 12, 9);
      sum(rank, 5, 8, true);
      sum(rank, 6, 7, false);
    }
    step(3, 12, 9);
    receive(3, 0, 8);
  }
  // The same, but `rank` has not come to 6.
  void all_but(size_t late) {
    for (size_t rank = 0; rank < 3; ++rank) {
      step(rank, 12, 9);
      sum(rank, 5, 8, true);
      if (rank != late) sum(rank, 6, 7, false);
    }
    step(3, 12, 9);
    receive(3, 0, 8);
  }
  Verdict verdict() const { return diagnose(reports_, "the alarm"); }

 private:
  std::vector<RankReport> reports_;
};

struct Case {
  const char* name;
  std::function<void(MadeWorld&)> make;
  std::vector<int32_t> culprits;
  std::vector<std::string> words;  // of the line
};

const Case kCases[] = {
    {"Gone",
     [](MadeWorld& world) {
       world.all_but(1);
       world[1].state = RankReport::State::kGone;
       world[2].error = "a consequence";
     },
     {1},
     {"rank 1 on host1 (stage 0, tensor rank 1) is gone", "in step 12 for 9.0 s",
      "after all_reduce_sum of 4096 bytes (f32) on tp (number 5)",
      "rank 0 waits for it, in step 12 for 9.0 s, in all_reduce_sum of 4096 bytes (f32) on tp "
      "(number 6) for 7.0 s"}},
    {"Silent",
     [](MadeWorld& world) {
       world.all_but(2);
       world[2].state = RankReport::State::kSilent;
       world[2].unheard = 3.25;
     },
     {2},
     {"rank 2 on host2 (stage 0, tensor rank 2) has not answered for 3.2 s"}},
    {"GoneBeforeSilent",
     [](MadeWorld& world) {
       world.all_but(2);
       world[2].state = RankReport::State::kSilent;
       world[3].state = RankReport::State::kGone;
     },
     {3},
     {"rank 3 on host3 (stage 1, tensor rank 0) is gone"}},
    {"TwoGone",
     [](MadeWorld& world) {
       world.all_in_sum_six();
       world[1].state = world[3].state = RankReport::State::kGone;
     },
     {1, 3},
     {"rank 1 on host1", "rank 3 on host3"}},
    {"OtherPlan",
     [](MadeWorld& world) {
       for (size_t rank = 0; rank < 4; ++rank) {
         world.step(rank, 11, 20, true);
         world.step(rank, 12, 9, false, rank == 3 ? 0xabcd : 0x1234);
       }
     },
     {3},
     {"rank 3 on host3 (stage 1, tensor rank 0) step 12: the hash of its plan is 000000000000abcd",
      "that of rank 0 on host0 (stage 0, tensor rank 0) is 0000000000001234"}},
    // Stage 1 has fewer sums, of its own.
    {"FewerCollectivesOnADevice",
     [](MadeWorld& world) {
       for (size_t rank = 0; rank < 4; ++rank) {
         world.step(rank, 11, 20, true);
         world.step(rank, 12, 9);
         for (LedgerStep& step : world[rank].view.steps) step.queued = rank == 3 ? 60 : 130;
       }
       world[2].view.steps[1].queued = 129;
     },
     {2},
     {"rank 2 on host2 (stage 0, tensor rank 2) step 12: its device was given 129 collectives "
      "before, that of rank 0 on host0 (stage 0, tensor rank 0) 130"}},
    {"MoreCollectivesOnTheFirstRanksDevice",
     [](MadeWorld& world) {
       for (size_t rank = 0; rank < 4; ++rank) {
         world.step(rank, 12, 9);
         world[rank].view.steps[0].queued = rank == 0 ? 131 : 130;
       }
     },
     {0},
     {"rank 0 on host0 (stage 0, tensor rank 0) step 12: its device was given 131 collectives "
      "before, that of rank 1 on host1 (stage 0, tensor rank 1) 130"}},
    {"OtherOperation",
     [](MadeWorld& world) {
       world.all_but(1);
       world.add(1, {LedgerOp::kAllGather, {}, 1, -1, 64, 6}, 7, false);
     },
     {1},
     {"mismatch: rank 1 on host1 (stage 0, tensor rank 1) step 12: all_gather of 64 bytes on tp "
      "(number 6), where rank 0 on host0 (stage 0, tensor rank 0) and rank 2 on host2 (stage 0, "
      "tensor rank 2) step 12: all_reduce_sum of 4096 bytes (f32) on tp (number 6)"}},
    {"OtherSize",
     [](MadeWorld& world) {
       world.all_but(0);
       world.sum(0, 6, 7, false, 8192);
     },
     {0},
     {"rank 0 on host0", "8192 bytes", "where rank 1"}},
    {"OtherType",
     [](MadeWorld& world) {
       world.all_but(2);
       world.add(2, {LedgerOp::kAllReduce, DType::kBF16, 1, -1, 4096, 6}, 7, false);
     },
     {2},
     {"(bf16)", "(f32)"}},
    // Equal sums, so that nothing but the step tells that one was passed over.
    {"OtherStepInTheSameCollective",
     [](MadeWorld& world) {
       world.all_but(1);
       world.step(1, 13, 1);
       world.sum(1, 6, 1, true);
     },
     {1},
     {"rank 1 on host1 (stage 0, tensor rank 1) step 13", "step 12"}},
    {"Threw",
     [](MadeWorld& world) {
       world.all_but(1);
       world[1].error = "out of memory";
       world[0].error = "aborted";
       world[0].passive = true;
     },
     {1},
     {"rank 1 on host1 (stage 0, tensor rank 1) step 12: out of memory"}},
    {"StuckOutsideOfOperations",
     [](MadeWorld& world) { world.all_but(1); },
     {1},
     {"rank 1 on host1 (stage 0, tensor rank 1) is stuck in step 12",
      "after all_reduce_sum of 4096 bytes (f32) on tp (number 5) since 8.0 s",
      "ranks 0, 2 wait for it, in step 12 for 9.0 s, in all_reduce_sum of 4096 bytes (f32) on tp "
      "(number 6) for 7.0 s"}},
    {"LeftTheStepEarly",
     [](MadeWorld& world) {
       for (size_t rank = 0; rank < 3; ++rank) {
         world.step(rank, 12, 9, rank == 2);
         world.sum(rank, 5, 8, true);
         if (rank != 2) world.sum(rank, 6, 7, false);
       }
       world.idle(2, 6);
     },
     {2},
     {"rank 2 on host2 (stage 0, tensor rank 2) has left step 12 without what others wait for"}},
    {"ThroughAnother",  // 3 waits for 0, which waits for 2
     [](MadeWorld& world) { world.all_but(2); },
     {2},
     {"rank 2 on host2"}},
    {"AMessageThatNobodySent",
     [](MadeWorld& world) {
       world.step(3, 12, 9);
       world.receive(3, 0, 8);
       world.step(0, 12, 9, true);
       world.idle(0, 3);
     },
     {0},
     {"rank 0 on host0", "rank 3 waits for it"}},
    {"BusyWhileOthersWaitForDevices",
     [](MadeWorld& world) {
       for (size_t rank = 0; rank < 4; ++rank) {
         world.step(rank, 12, 9);
         if (rank != 2) world.add(rank, {LedgerOp::kDevice, {}, -1, -1, 0, 0}, 5, false);
       }
     },
     {2},
     {"rank 2 on host2", "in no operation", "in step 12"}},
    // Rank 0 has launched step 13 while 12 runs; rank 1 has had 12 and not taken 13 up.
    {"LateWhileOthersWaitForDevices",
     [](MadeWorld& world) {
       for (size_t rank = 0; rank < 4; ++rank) {
         world.step(rank, 12, 9, rank == 1);
         if (rank < 3) world.sum(rank, 5, 8, true);
         if (rank != 1) world.step(rank, 13, 7);
         if (rank != 1) world.add(rank, {LedgerOp::kDevice, {}, -1, -1, 0, 0}, 5, false);
       }
     },
     {1},
     {"rank 1 on host1", "is stuck before step 13", "between steps, after step 12"}},
    // Who has just ended an operation is on its way into the next step.
    {"OnItsWayIsNotLate",
     [](MadeWorld& world) {
       for (size_t rank = 0; rank < 3; ++rank) {
         world.step(rank, 12, 9, true);
         world.step(rank, 13, 7);
         world.add(rank, {LedgerOp::kDevice, {}, -1, -1, 0, 0}, 5, false);
       }
       world.step(3, 12, 9, true);
       world.add(3, {LedgerOp::kReceive, {}, 0, 0, 512, 0}, 0, true);
     },
     {},
     {"the alarm"}},
    {"BehindWhileAllWaitForDevices",
     [](MadeWorld& world) {
       for (size_t rank = 0; rank < 4; ++rank) {
         world.step(rank, 12, 9);
         if (rank < 3) world.sum(rank, 5, 8, true);
         if (rank == 0 || rank == 2) world.sum(rank, 6, 7, true);
         world.add(rank, {LedgerOp::kDevice, {}, -1, -1, 0, 0}, 5, false);
       }
     },
     {1},
     {"rank 1 on host1 (stage 0, tensor rank 1) has come to number 5 on tp, others to number 6",
      "wait for the device"}},
    {"OnlyConsequences",
     [](MadeWorld& world) {
       world.all_in_sum_six();
       world[2].error = "waited 300000 ms";
       world[2].passive = true;
     },
     {2},
     {"waited 300000 ms"}},
    {"NobodyIsBehind", [](MadeWorld& world) { world.all_in_sum_six(); }, {}, {"the alarm"}},
};

TEST(Diagnosis, NamesTheCulprit) {
  for (const Case& one : kCases) {
    SCOPED_TRACE(one.name);
    MadeWorld world;
    one.make(world);
    const Verdict verdict = world.verdict();
    EXPECT_EQ(verdict.culprits, one.culprits) << verdict.line;
    for (const std::string& word : one.words) {
      EXPECT_NE(verdict.line.find(word), std::string::npos) << word << "\nnot in\n" << verdict.line;
    }
    EXPECT_EQ(verdict.line.find('\n'), std::string::npos);
    EXPECT_EQ(verdict.ranks.size(), 4u);
  }
}

// Two ranks differ, and the third has not come yet: who is right is asked again.
TEST(Diagnosis, AMismatchOfTwoIsOpenUntilTheThirdHasCome) {
  MadeWorld world;
  world.all_but(1);
  world.add(1, {LedgerOp::kAllGather, {}, 1, -1, 64, 6}, 7, false);
  world[0].view.operations.pop_back();
  EXPECT_TRUE(world.verdict().open);
  world.sum(0, 6, 1, false);
  EXPECT_FALSE(world.verdict().open);
  EXPECT_EQ(world.verdict().culprits, (std::vector<int32_t>{1}));
}

TEST(Diagnosis, ToldRanksHaveTheirLastOperations) {
  MadeWorld world;
  world.all_in_sum_six();
  const Verdict verdict = world.verdict();
  EXPECT_EQ(verdict.ranks[1],
            "rank 1 on host1 (stage 0, tensor rank 1): in step 12 for 9.0 s, in all_reduce_sum of "
            "4096 bytes (f32) on tp (number 6) for 7.0 s; before: all_reduce_sum of 4096 bytes "
            "(f32) on tp (number 5)");
  EXPECT_EQ(verdict.ranks[3],
            "rank 3 on host3 (stage 1, tensor rank 0): in step 12 for 9.0 s, in recv of 512 bytes "
            "from rank 0 on control for 8.0 s");
}

// Reports come over the wire: groups and ranks that do not exist are passed over.
TEST(Diagnosis, SurvivesNonsense) {
  MadeWorld world;
  world.all_in_sum_six();
  world[2].groups = {{"tp", {0, 9, -4}}};
  world[2].view.operations.back().call.group = 0;
  world.add(2, {LedgerOp::kReceive, {}, 99, 77, 1, 0}, 1, false);
  world.add(3, {static_cast<LedgerOp>(200), {}, 0, -7, 1, 3}, 1, false);
  EXPECT_FALSE(world.verdict().line.empty());
}

}  // namespace
}  // namespace trireme
