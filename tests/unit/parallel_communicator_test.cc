// Single and thread communicators: the cases that MPI runs too, then what only threads can show.
// Built with -fsanitize=thread as well.
#include <gtest/gtest.h>

#include <thread>

#include "base/error.h"
#include "tests/support/communicator_cases.h"
#include "tests/support/errors.h"
#include "tests/support/run_ranks.h"

namespace trireme {
namespace {

std::vector<CommunicatorCase> all_cases() {
  auto cases = collective_cases();
  for (auto& one : point_to_point_cases()) cases.push_back(one);
  return cases;
}

class ThreadWorld : public testing::TestWithParam<std::tuple<CommunicatorCase, int>> {};

TEST_P(ThreadWorld, Case) {
  const auto& [one, size] = GetParam();
  run_ranks(size, one.run);
}

INSTANTIATE_TEST_SUITE_P(Communicator, ThreadWorld,
                         testing::Combine(testing::ValuesIn(all_cases()),
                                          testing::Values(1, 2, 3, 4, 7, 12)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

class SingleWorld : public testing::TestWithParam<CommunicatorCase> {};

TEST_P(SingleWorld, Case) { GetParam().run(*make_single_communicator()); }

INSTANTIATE_TEST_SUITE_P(Communicator, SingleWorld, testing::ValuesIn(all_cases()),
                         [](const auto& info) { return info.param.name; });

TEST(ThreadCommunicator, ManyRandomAllReduces) {
#ifdef __SANITIZE_THREAD__
  const int rounds = 10'000;
#else
  const int rounds = 100'000;
#endif
  run_ranks(3, [&](Communicator& ranks) { check_random_all_reduces(ranks, rounds, 2000, 1); });
}

// Ranks 0..2 wait in three different ways; the abort of rank 3 wakes all, in every group.
TEST(ThreadCommunicator, AbortWakesEveryWaiter) {
  run_ranks(4, [](Communicator& ranks) {
    auto group = ranks.split(0, "group");
    std::vector<float> data(8);
    const auto bytes = std::as_writable_bytes(std::span(data));
    if (ranks.rank() == 0) {
      EXPECT_EQ(code_of([&] { group->all_reduce_sum(data); }), ErrorCode::kAborted);
    } else if (ranks.rank() == 1) {
      EXPECT_EQ(code_of([&] { group->recv(bytes, 3, 1); }), ErrorCode::kAborted);
    } else if (ranks.rank() == 2) {
      EXPECT_EQ(code_of([&] { ranks.probe(3, 1, Wait::kForever); }), ErrorCode::kAborted);
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ranks.abort("rank 3 saw a flood");
    }
    EXPECT_EQ(code_of([&] { group->check(); }), ErrorCode::kAborted);
    // Later calls fail too, and say why.
    try {
      group->barrier();
      ADD_FAILURE() << "passed a barrier of an aborted world";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kAborted);
      EXPECT_NE(std::string(error.what()).find("flood"), std::string::npos) << error.what();
    }
  });
}

TEST(ThreadCommunicator, MismatchedCollectivesAreRefused) {
  run_ranks(3, [](Communicator& ranks) {
    auto group = ranks.split(0, "group");
    std::vector<float> data(ranks.rank() == 1 ? 9 : 8);
    EXPECT_EQ(code_of([&] { group->all_reduce_sum(data); }), ErrorCode::kInternal);
    auto other = ranks.split(0, "other");
    const auto bytes = std::as_writable_bytes(std::span(data)).first(32);
    EXPECT_EQ(code_of([&] {
                if (ranks.rank() == 0) {
                  other->broadcast(bytes, 0);
                } else {
                  other->all_reduce_sum(std::span(data).first(8));
                }
              }),
              ErrorCode::kInternal);
  });
}

TEST(ThreadCommunicator, RanksThatDoNotAgreeAreRefused) {
  run_ranks(3, [](Communicator& ranks) {
    auto group = ranks.split(0, "group");
    group->set_agreement(0xfeed);
    std::vector<float> data(8);
    group->all_reduce_sum(data);
    group->set_agreement(ranks.rank() == 1 ? 0xdead : 0xbeef);
    const Error error = error_of([&] { group->all_reduce_sum(data); });
    EXPECT_EQ(error.code(), ErrorCode::kInternal);
    EXPECT_NE(std::string(error.what()).find("plan 000000000000dead"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("plan 000000000000beef"), std::string::npos);
  });
}

// Aborts at random moments of collectives in flight: nobody hangs, nobody touches freed memory
// (which the sanitizers would see).
TEST(ThreadCommunicator, AbortAtRandomMoments) {
  for (int round = 0; round < 30; ++round) {
    run_ranks(4, [round](Communicator& ranks) {
      for (int step = 0;; ++step) {
        if (ranks.rank() == round % 4 && step == round * 7) ranks.abort("now");
        std::vector<float> data(static_cast<size_t>(1 + step % 50), 1.0f);
        try {
          ranks.all_reduce_sum(data);
          EXPECT_EQ(data[0], 4.0f);
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ErrorCode::kAborted);
          return;
        }
      }
    });
  }
}

TEST(ThreadCommunicator, LateRankFindsTheGroupClosed) {
  run_ranks(2, [](Communicator& ranks) {
    auto group = ranks.split(0, "group");
    group->set_deadline(std::chrono::milliseconds(30));
    if (ranks.rank() == 0) {
      EXPECT_EQ(code_of([&] { group->barrier(); }), ErrorCode::kDeadlineExceeded);
    }
    ranks.barrier();
    EXPECT_EQ(code_of([&] { group->barrier(); }), ErrorCode::kAborted);
  });
}

TEST(ThreadCommunicator, BoundedSendsWaitForTheReceiver) {
  run_ranks(2, [](Communicator& ranks) {
    ranks.set_deadline(std::chrono::milliseconds(50));
    std::vector<std::byte> data(1);
    if (ranks.rank() == 0) {
      EXPECT_EQ(code_of([&] {
                  for (int i = 0; i < 1'000'000; ++i) ranks.send(data, 1, 0);
                }),
                ErrorCode::kDeadlineExceeded);
    }
  });
}

TEST(SingleCommunicator, NeverWaitsForAnybody) {
  auto single = make_single_communicator();
  std::vector<std::byte> data(1);
  EXPECT_EQ(code_of([&] { single->recv(data, 0, 3); }), ErrorCode::kDeadlineExceeded);
  EXPECT_EQ(code_of([&] { single->probe(0, 3, Wait::kForever); }), ErrorCode::kDeadlineExceeded);
  single->abort("over");
  EXPECT_EQ(code_of([&] { single->barrier(); }), ErrorCode::kAborted);
}

}  // namespace
}  // namespace trireme
