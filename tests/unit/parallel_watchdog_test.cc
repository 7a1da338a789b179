// Watchdogs whose ranks are threads of the test and whose messages travel over TCP: who is named,
// that all end, and that leaving in good order ends nobody.
#include "parallel/watchdog.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <thread>

#include "parallel/watch_messages.h"
#include "tests/support/run_ranks.h"

namespace trireme {
namespace {

using Milliseconds = std::chrono::milliseconds;

// What one rank's watchdog has done.
struct Outcome {
  std::mutex mutex;
  std::vector<std::string> lines;
  std::string reason;
  std::atomic<int> ended{0};  // its exit code

  WatchdogOptions options() {
    WatchdogOptions made;
    made.step_limit = Milliseconds(0);
    made.silence_limit = Milliseconds(60'000);
    made.print = [this](const std::string& line) {
      const std::lock_guard lock(mutex);
      lines.push_back(line);
    };
    made.abort = [this](const std::string& why) {
      const std::lock_guard lock(mutex);
      reason = why;
    };
    made.end = [this](int code) { ended = code; };
    return made;
  }
  // Or until it is clear that it will not: then `ended` is 0.
  void wait_until_ended() const {
    const auto until = std::chrono::steady_clock::now() + Milliseconds(20'000);
    while (ended == 0 && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(Milliseconds(1));
    }
  }
  std::string first_line() {
    const std::lock_guard lock(mutex);
    return lines.empty() ? "" : lines[0];
  }
};

constexpr int kRanks = 3;

std::vector<RankPlace> places() {
  std::vector<RankPlace> made(kRanks);
  for (int rank = 0; rank < kRanks; ++rank) {
    std::snprintf(made[static_cast<size_t>(rank)].host, sizeof made[0].host, "host%d", rank);
    made[static_cast<size_t>(rank)].tensor = rank;
  }
  return made;
}

void add_groups(Ledger& ledger) { ledger.add_group("tp", {0, 1, 2}); }

void begin_sum(Ledger& ledger, uint64_t number) {
  ledger.begin({LedgerOp::kAllReduce, DType::kF32, 0, -1, 64, number});
}

// `body(rank, ledger, star, outcome, control)` on each rank; then all outcomes.
template <typename Body>
void run_watched(std::array<Outcome, kRanks>& outcomes, Body body) {
  run_ranks(kRanks, [&](Communicator& ranks) {
    Ledger ledger;
    add_groups(ledger);
    TcpStar star = std::move(connect_tcp_stars(ranks, 1)[0]);
    body(ranks.rank(), ledger, star, outcomes[static_cast<size_t>(ranks.rank())], ranks);
    ranks.barrier();
  });
}

void expect_all_ended(std::array<Outcome, kRanks>& outcomes, const std::string& word) {
  for (Outcome& outcome : outcomes) {
    EXPECT_EQ(outcome.ended, kBrokenWorld);
    EXPECT_NE(outcome.reason.find(word), std::string::npos) << outcome.reason;
  }
  EXPECT_NE(outcomes[0].first_line().find(word), std::string::npos) << outcomes[0].first_line();
  EXPECT_EQ(outcomes[0].lines.size(), 1u + kRanks);
  EXPECT_TRUE(outcomes[1].lines.empty());
  EXPECT_TRUE(outcomes[2].lines.empty());
}

TEST(Watchdog, LeavingInGoodOrderEndsNobody) {
  for (int first = 0; first < kRanks; ++first) {
    std::array<Outcome, kRanks> outcomes;
    run_watched(outcomes, [&](int rank, Ledger& ledger, TcpStar& star, Outcome& outcome,
                              Communicator& control) {
      auto watchdog =
          std::make_unique<Watchdog>(rank, places(), std::move(star), ledger, outcome.options());
      ledger.begin_step(1, 5);
      ledger.end_step(1);
      control.barrier();
      if (rank == first) watchdog.reset();
      control.barrier();
      EXPECT_EQ(outcome.ended, 0);
    });
    for (Outcome& outcome : outcomes) {
      EXPECT_EQ(outcome.ended, 0);
      EXPECT_TRUE(outcome.lines.empty()) << outcome.first_line();
      EXPECT_TRUE(outcome.reason.empty());
    }
  }
}

TEST(Watchdog, AStepPastItsLimit) {
  std::array<Outcome, kRanks> outcomes;
  run_watched(outcomes, [&](int rank, Ledger& ledger, TcpStar& star, Outcome& outcome,
                            Communicator& control) {
    WatchdogOptions options = outcome.options();
    options.step_limit = Milliseconds(300);
    ledger.begin_step(1, 5);
    ledger.end_step(1);
    ledger.begin_step(2, 6);
    begin_sum(ledger, 1);
    ledger.end();
    if (rank != 1) begin_sum(ledger, 2);
    control.barrier();  // all are there before anybody looks
    const Watchdog watchdog(rank, places(), std::move(star), ledger, options);
    outcome.wait_until_ended();
    EXPECT_TRUE(watchdog.has_ended());
    control.barrier();
  });
  expect_all_ended(outcomes, "rank 1 on host1 (stage 0, tensor rank 1) is stuck in step 2");
}

TEST(Watchdog, AStepLoopThatFails) {
  std::array<Outcome, kRanks> outcomes;
  run_watched(outcomes, [&](int rank, Ledger& ledger, TcpStar& star, Outcome& outcome,
                            Communicator& control) {
    Watchdog watchdog(rank, places(), std::move(star), ledger, outcome.options());
    control.barrier();
    ledger.begin_step(9, 1);
    if (rank == 2) {
      watchdog.failed("the floor is wet", false);
      EXPECT_TRUE(watchdog.has_ended());  // it returned when rank 0 had spoken
    }
    outcome.wait_until_ended();
    control.barrier();
  });
  expect_all_ended(outcomes, "rank 2 on host2 (stage 0, tensor rank 2) step 9: the floor is wet");
}

TEST(Watchdog, ARankThatIsGone) {
  std::array<Outcome, kRanks> outcomes;
  run_watched(outcomes, [&](int rank, Ledger& ledger, TcpStar& star, Outcome& outcome,
                            Communicator& control) {
    if (rank == 1) {
      star.clear();
      outcome.ended = kBrokenWorld;
      outcome.reason = "is gone";
      control.barrier();
      return;
    }
    const Watchdog watchdog(rank, places(), std::move(star), ledger, outcome.options());
    outcome.wait_until_ended();
    control.barrier();
  });
  expect_all_ended(outcomes, "is gone");
  EXPECT_NE(outcomes[0].first_line().find("rank 1 on host1"), std::string::npos);
}

TEST(Watchdog, ARankThatIsSilent) {
  std::array<Outcome, kRanks> outcomes;
  run_watched(outcomes, [&](int rank, Ledger& ledger, TcpStar& star, Outcome& outcome,
                            Communicator& control) {
    if (rank == 2) {  // the connection stands, and nobody speaks
      outcome.ended = kBrokenWorld;
      outcome.reason = "has not answered";
      control.barrier();
      return;
    }
    WatchdogOptions options = outcome.options();
    if (rank == 0) options.silence_limit = Milliseconds(500);
    if (rank == 1) options.silence_limit = Milliseconds(8'000);
    const Watchdog watchdog(rank, places(), std::move(star), ledger, options);
    outcome.wait_until_ended();
    control.barrier();
  });
  expect_all_ended(outcomes, "has not answered");
  EXPECT_NE(outcomes[0].first_line().find("rank 2 on host2"), std::string::npos);
}

TEST(Watchdog, RanksThatLoseRankZeroEndThemselves) {
  for (const bool closes : {true, false}) {
    std::array<Outcome, kRanks> outcomes;
    run_watched(outcomes, [&](int rank, Ledger& ledger, TcpStar& star, Outcome& outcome,
                              Communicator& control) {
      if (rank == 0) {
        if (closes) star.clear();
        control.barrier();
        return;
      }
      WatchdogOptions options = outcome.options();
      if (!closes) options.silence_limit = Milliseconds(200);
      const Watchdog watchdog(rank, places(), std::move(star), ledger, options);
      outcome.wait_until_ended();
      control.barrier();
    });
    for (size_t rank = 1; rank < kRanks; ++rank) {
      EXPECT_EQ(outcomes[rank].ended, kBrokenWorld);
      EXPECT_NE(outcomes[rank].first_line().find("rank 0 on host0 (stage 0, tensor rank 0)"),
                std::string::npos);
      const char* why = closes ? "is gone" : "has not answered";
      EXPECT_NE(outcomes[rank].reason.find(why), std::string::npos) << outcomes[rank].reason;
    }
  }
}

TEST(Watchdog, PlansThatDifferAreFoundByTheBeats) {
  std::array<Outcome, kRanks> outcomes;
  run_watched(outcomes, [&](int rank, Ledger& ledger, TcpStar& star, Outcome& outcome,
                            Communicator& control) {
    ledger.begin_step(3, rank == 1 ? 0xbad : 0x900d);
    ledger.end_step(3);
    const Watchdog watchdog(rank, places(), std::move(star), ledger, outcome.options());
    outcome.wait_until_ended();
    control.barrier();
  });
  expect_all_ended(outcomes,
                   "rank 1 on host1 (stage 0, tensor rank 1) step 3: the hash of its plan "
                   "is 0000000000000bad");
}

// Ranks by stage: `first` ranks are of stage 0, the others of stage 1.
std::vector<RankPlace> places_in_stages(int first) {
  std::vector<RankPlace> made = places();
  for (int rank = first; rank < kRanks; ++rank) {
    made[static_cast<size_t>(rank)].stage = 1;
    made[static_cast<size_t>(rank)].tensor = rank - first;
  }
  return made;
}

void queue_sums(Ledger& ledger, int count) {
  for (int i = 0; i < count; ++i) {
    ledger.begin({LedgerOp::kAllReduce, DType::kF32, 0, -1, 64, ledger.next_number(0), true});
    ledger.end();
  }
}

struct QueueCase {
  const char* name;
  int first_stage;                // its ranks
  std::array<int, kRanks> given;  // collectives, by rank, before step 3
  size_t wrong, right;            // ranks as they must be named
};
void PrintTo(const QueueCase& one, std::ostream* out) { *out << one.name; }

class WatchdogQueue : public testing::TestWithParam<QueueCase> {};

// Nobody has failed, is late or waits: the beats alone tell.
TEST_P(WatchdogQueue, IsFoundByTheBeats) {
  const QueueCase& made = GetParam();
  const std::vector<RankPlace> stages = places_in_stages(made.first_stage);
  std::array<Outcome, kRanks> outcomes;
  run_watched(outcomes, [&](int rank, Ledger& ledger, TcpStar& star, Outcome& outcome,
                            Communicator& control) {
    ledger.begin_step(2, 5);
    queue_sums(ledger, made.given[static_cast<size_t>(rank)]);
    ledger.begin_step(3, 6);
    control.barrier();
    const Watchdog watchdog(rank, stages, std::move(star), ledger, outcome.options());
    outcome.wait_until_ended();
    control.barrier();
  });
  const auto named = [&](size_t rank) {
    const RankPlace& place = stages[rank];
    return fmt::format("rank {} on {} (stage {}, tensor rank {})", rank, place.host, place.stage,
                       place.tensor);
  };
  const std::string line = fmt::format(
      "{} step 3: its device was given {} collectives before, that of {} {}", named(made.wrong),
      made.given[made.wrong], named(made.right), made.given[made.right]);
  expect_all_ended(outcomes, line);
  EXPECT_EQ(outcomes[0].first_line(), line);  // and names nobody else
}

// Of two ranks nobody can say who is right: both are named, the lower one as the measure. The other
// stage, which is of one rank, has no say in it.
INSTANTIATE_TEST_SUITE_P(All, WatchdogQueue,
                         testing::Values(QueueCase{"FewerOnTheLastOfThree", 3, {7, 7, 6}, 2, 0},
                                         QueueCase{"MoreOnTheSecondOfThree", 3, {7, 9, 7}, 1, 0},
                                         QueueCase{"FewerOnTheFirstOfThree", 3, {6, 7, 7}, 0, 1},
                                         QueueCase{"OfTwoInTheFirstStage", 2, {6, 7, 7}, 1, 0},
                                         QueueCase{"OfTwoInTheLastStage", 1, {7, 6, 7}, 2, 1}),
                         [](const auto& info) { return std::string(info.param.name); });

// Stages differ as they like; whoever else fails is named, and no queue.
TEST(Watchdog, EqualQueuesAreNotToBlame) {
  for (int first_stage = 1; first_stage <= kRanks; ++first_stage) {
    std::array<Outcome, kRanks> outcomes;
    run_watched(outcomes, [&](int rank, Ledger& ledger, TcpStar& star, Outcome& outcome,
                              Communicator& control) {
      for (uint64_t step = 1; step <= 3 * Ledger::kSteps; ++step) {
        ledger.begin_step(step, step);
        queue_sums(ledger, rank < first_stage ? 3 : 5);
        ledger.end_step(step);
      }
      // Late by a step, and within a step.
      if (rank > 0) ledger.begin_step(3 * Ledger::kSteps + 1, 9);
      if (rank > 1) queue_sums(ledger, 2);
      Watchdog watchdog(rank, places_in_stages(first_stage), std::move(star), ledger,
                        outcome.options());
      control.barrier();
      std::this_thread::sleep_for(Milliseconds(200));  // the first beats have come
      EXPECT_EQ(outcome.ended, 0);
      control.barrier();
      if (rank == 1) watchdog.failed("the floor is wet", false);
      outcome.wait_until_ended();
      control.barrier();
    });
    expect_all_ended(outcomes, "the floor is wet");
    EXPECT_EQ(outcomes[0].first_line().find("rank 1 on host1"), 0u) << outcomes[0].first_line();
  }
}

// A beat tells the last kSteps steps, and quick ones are many more from one beat to the next: two
// ranks whose beats are apart may never tell of the same step. Sums of a device that has passed one
// over meet others and end, so that nothing stands still either.
TEST(Watchdog, QueuesAreComparedAcrossBeatsThatAreApart) {
  std::array<Outcome, kRanks> outcomes;
  run_watched(outcomes, [&](int rank, Ledger& ledger, TcpStar& star, Outcome& outcome,
                            Communicator& control) {
    const uint64_t last = rank == 2 ? 8 * Ledger::kSteps - 1 : 4 * Ledger::kSteps + 20;
    for (uint64_t step = 1; step <= last; ++step) {
      ledger.begin_step(step, step);
      queue_sums(ledger, rank == 2 && step == 200 ? 2 : 3);
      ledger.end_step(step);
    }
    control.barrier();
    const Watchdog watchdog(rank, places_in_stages(1), std::move(star), ledger, outcome.options());
    outcome.wait_until_ended();
    control.barrier();
  });
  expect_all_ended(outcomes,
                   "rank 2 on host2 (stage 1, tensor rank 1) step 256: its device was given 764 "
                   "collectives before, that of rank 1 on host1 (stage 1, tensor rank 0) 765");
}

RankReport some_report() {
  RankReport report;
  report.error = "an error";
  report.passive = true;
  report.groups = {{"control", {0, 1, 2}}, {"tp", {1}}};
  Ledger ledger;
  ledger.begin_step(768, 98);
  ledger.begin_step(812, 99);
  begin_sum(ledger, 4);
  ledger.end();
  begin_sum(ledger, 5);
  report.view = ledger.view();
  return report;
}

TEST(WatchMessages, AReportTravels) {
  const RankReport sent = some_report();
  RankReport got;
  got.rank = 7;
  ASSERT_TRUE(decode_report(encode_report(sent), got));
  EXPECT_EQ(got.rank, 7);
  EXPECT_EQ(got.error, sent.error);
  EXPECT_TRUE(got.passive);
  EXPECT_EQ(got.view.now, sent.view.now);
  ASSERT_EQ(got.view.operations.size(), 2u);
  EXPECT_EQ(got.view.operations[1].call.number, 5u);
  EXPECT_EQ(got.view.operations[1].step, 812u);
  ASSERT_EQ(got.view.steps.size(), 2u);
  EXPECT_EQ(got.view.steps[1].plan, 99u);
  ASSERT_EQ(got.view.marks.size(), 1u);
  EXPECT_EQ(got.view.marks[0].plan, 98u);
  ASSERT_EQ(got.groups.size(), 2u);
  EXPECT_EQ(got.groups[0].ranks, sent.groups[0].ranks);
  EXPECT_EQ(got.groups[1].name, "tp");
}

TEST(WatchMessages, APartOfAReportIsNone) {
  const auto whole = encode_report(some_report());
  const size_t fixed = encode_report([] {
                         RankReport report = some_report();
                         report.groups.clear();
                         return report;
                       }())
                           .size();
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    RankReport got;
    const bool whole_groups = decode_report(std::span(whole).first(bytes), got);
    // What ends between two groups is a report of fewer groups.
    EXPECT_TRUE(!whole_groups || bytes >= fixed) << bytes;
    EXPECT_TRUE(whole_groups || (got.groups.empty() && got.error.empty())) << bytes;
  }
  auto lie = whole;
  lie[24 + 7] = std::byte{0xff};  // the length of the error
  RankReport got;
  EXPECT_FALSE(decode_report(lie, got));
}

TEST(WatchMessages, FramesComeOutWhole) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  const Socket here(fds[0]);
  Socket there(fds[1]);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  const std::vector<std::byte> body(100, std::byte{3});
  ASSERT_TRUE(send_frame(there, WatchWord::kAlarm, body, until));
  ASSERT_TRUE(send_frame(there, WatchWord::kAlive, {}, until));
  ASSERT_EQ(write(there.fd(), body.data(), 5), 5);  // the beginning of a header
  FrameReader reader;
  EXPECT_TRUE(reader.read(here));
  const auto first = reader.next();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->word, WatchWord::kAlarm);
  EXPECT_EQ(first->body, body);
  const auto second = reader.next();
  ASSERT_TRUE(second);
  EXPECT_EQ(second->word, WatchWord::kAlive);
  EXPECT_FALSE(reader.next());
  there = Socket();
  EXPECT_FALSE(reader.read(here));
}

}  // namespace
}  // namespace trireme
