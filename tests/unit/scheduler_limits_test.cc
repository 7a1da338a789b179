// What is refused, what is bounded, and the profiles.
#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "runtime/profiles.h"
#include "tests/support/errors.h"
#include "tests/unit/scheduler_fixture.h"

namespace trireme::test {
namespace {

TEST_F(SchedulerTest, WhatCanNeverRunIsRefused) {
  start(small_config(), small_pool(8));
  const auto refused = [&](Sequence sequence) {
    try {
      scheduler_->add(std::move(sequence));
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  EXPECT_TRUE(refused(sequence_of(1, 65, 1)));
  EXPECT_TRUE(refused(sequence_of(1, 0, 1)));
  EXPECT_TRUE(refused(sequence_of(1, 10, -1)));
  EXPECT_TRUE(refused(sequence_of(1, 10, 24)));   // 33 positions: 9 blocks
  EXPECT_FALSE(refused(sequence_of(1, 10, 23)));  // the last token needs no KV
  Sequence wrong = sequence_of(2, 4, 1);
  wrong.prompt_tokens = 5;
  EXPECT_TRUE(refused(wrong));
  EXPECT_THROW(scheduler_->add(sequence_of(1, 4, 1)), Error);  // the id lives
}

TEST_F(SchedulerTest, TheQueueIsBounded) {
  start(small_config(), small_pool());
  for (SequenceId id = 1; id <= 8; ++id) EXPECT_TRUE(scheduler_->add(sequence_of(id, 4, 2)));
  EXPECT_FALSE(scheduler_->add(sequence_of(9, 4, 2)));
  step();  // four get a slot
  EXPECT_TRUE(scheduler_->add(sequence_of(9, 4, 2)));
}

// However much the newcomers bring along, a plan stays a message of bounded size.
TEST_F(SchedulerTest, LargeTokenListsEnterOneAfterTheOther) {
  start(small_config(), small_pool());
  for (SequenceId id = 1; id <= 3; ++id) {
    Sequence sequence = sequence_of(id, 2, 4);
    if (id < 3) sequence.sampling.banned_tokens.assign(2'200'000, 1);
    scheduler_->add(std::move(sequence));
  }
  EXPECT_EQ(step().admitted.size(), 1u);
  EXPECT_EQ(step().admitted.size(), 2u);
}

template <typename Call>
std::string message_of(Call call) {
  const Error error = error_of(call);
  EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
  return error.what();
}

TEST(Profiles, AreNamed) {
  for (const char* name : {"latency", "balanced", "throughput"}) {
    EXPECT_NO_THROW(validate(profile(name)));
  }
  EXPECT_LT(profile("latency").token_budget, profile("balanced").token_budget);
  EXPECT_GT(profile("throughput").max_running, profile("balanced").max_running);
  EXPECT_NE(message_of([] { profile("fast"); }).find("latency, balanced, throughput"),
            std::string::npos);
}

TEST(Limits, AreBoundedOnBothSides) {
  struct Limit {
    const char* name;
    int32_t SchedulerConfig::*member;
    bool any_int;  // no upper end
  };
  using S = SchedulerConfig;
  for (const Limit& limit :
       {Limit{"token_budget", &S::token_budget, false}, Limit{"max_chunk", &S::max_chunk, false},
        Limit{"max_rows", &S::max_rows, false}, Limit{"max_running", &S::max_running, false},
        Limit{"max_queue", &S::max_queue, false}, Limit{"max_context", &S::max_context, true},
        Limit{"steps_in_flight", &S::steps_in_flight, false}}) {
    for (const int32_t bad : {INT32_MIN, 0, INT32_MAX}) {
      if (bad == INT32_MAX && limit.any_int) continue;
      SchedulerConfig config;
      config.*limit.member = bad;
      const std::string message = message_of([&] { validate(config); });
      EXPECT_NE(message.find(limit.name), std::string::npos) << message;
      EXPECT_NE(message.find(std::to_string(bad)), std::string::npos) << message;
    }
  }
  for (const int32_t bad : {0, INT32_MAX}) {
    KvPoolConfig pool;
    pool.blocks = {4};
    pool.block_size = bad;
    EXPECT_NE(message_of([&] { KvCachePool{pool}; }).find("block_size"), std::string::npos);
  }
}

}  // namespace
}  // namespace trireme::test
