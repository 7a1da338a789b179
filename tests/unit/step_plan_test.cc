#include "runtime/step_plan.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"

namespace trireme {
namespace {

StepPlan sample_plan() {
  StepPlan plan;
  plan.epoch = 3;
  plan.step = 1ull << 40;
  SlotInit& init = plan.admitted.emplace_back();
  init.slot = 5;
  init.output_index = 2;
  init.prompt_tokens = 7;
  init.sampling.temperature = 0.25f;
  init.sampling.top_k = 40;
  init.sampling.top_p = 0.5f;
  init.sampling.min_p = 0.125f;
  init.sampling.repetition_penalty = 1.5f;
  init.sampling.presence_penalty = -1.0f;
  init.sampling.frequency_penalty = 0.75f;
  init.sampling.logit_bias = {{3, -100.0f}, {9, 1.5f}};
  init.sampling.allowed_tokens = {1, 2};
  init.sampling.banned_tokens = {4};
  init.sampling.seed = ~0ull;
  init.sampling.max_tokens = 11;
  init.sampling.min_tokens = 1;
  init.sampling.stop_ids = {0, 2};
  init.sampling.logprobs = 5;
  init.sampling.prompt_logprobs = 0;
  init.blocks = {{1, 2}, {kNoBlock, 4}};
  init.history = {8, 9, 10};
  plan.admitted.emplace_back().slot = 6;  // every list empty: the smallest encoding
  plan.rows.push_back({.slot = 5, .position = 9, .count = 1, .token_begin = 0, .sample = true});
  plan.rows.push_back({.slot = 6,
                       .position = 0,
                       .count = 2,
                       .token_begin = 1,
                       .block_begin = 0,
                       .block_count = 1,
                       .prompt_logprobs = true,
                       .next_token = 77});
  plan.tokens = {10, 20, 30};
  plan.blocks = {3, 1};
  return plan;
}

StepResult sample_result() {
  StepResult result;
  result.step = 9;
  RowResult& row = result.rows.emplace_back();
  row.slot = 1;
  row.token = 42;
  row.logprob = -0.5f;
  row.top = {{42, -0.5f}, {7, -1.5f}};
  row.prompt = {{1, -2.0f}, {2, -3.0f}};
  row.prompt_top = {{{1, -2.0f}}, {}};
  result.rows.emplace_back().slot = 2;
  return result;
}

template <typename Message>
std::vector<std::byte> bytes_of(const Message& message) {
  std::vector<std::byte> bytes;
  encode(message, bytes);
  return bytes;
}

// Whether decoding fails as it should; anything but kInternal fails the test.
template <typename Message>
bool refused(std::span<const std::byte> bytes) {
  // An exact copy, so that a sanitizer sees a read past the end.
  const std::vector<std::byte> copy(bytes.begin(), bytes.end());
  Message message;
  try {
    decode(copy, message);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInternal);
    return true;
  }
  return false;
}

TEST(StepPlan, PlanComesBackAsItWas) {
  const StepPlan plan = sample_plan();
  StepPlan back;
  back.rows.resize(9);  // a reused plan with old content
  back.admitted.resize(4);
  decode(bytes_of(plan), back);
  EXPECT_EQ(back.epoch, plan.epoch);
  EXPECT_EQ(back.step, plan.step);
  ASSERT_EQ(back.admitted.size(), 2u);
  const SlotInit& init = back.admitted[0];
  EXPECT_EQ(init.slot, 5);
  EXPECT_EQ(init.output_index, 2u);
  EXPECT_EQ(init.prompt_tokens, 7);
  EXPECT_EQ(init.sampling.temperature, 0.25f);
  EXPECT_EQ(init.sampling.top_k, 40);
  EXPECT_EQ(init.sampling.top_p, 0.5f);
  EXPECT_EQ(init.sampling.min_p, 0.125f);
  EXPECT_EQ(init.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(init.sampling.presence_penalty, -1.0f);
  EXPECT_EQ(init.sampling.frequency_penalty, 0.75f);
  EXPECT_EQ(init.sampling.logit_bias, plan.admitted[0].sampling.logit_bias);
  EXPECT_EQ(init.sampling.allowed_tokens, plan.admitted[0].sampling.allowed_tokens);
  EXPECT_EQ(init.sampling.banned_tokens, plan.admitted[0].sampling.banned_tokens);
  EXPECT_EQ(init.sampling.seed, ~0ull);
  EXPECT_EQ(init.sampling.max_tokens, 11);
  EXPECT_EQ(init.sampling.min_tokens, 1);
  EXPECT_EQ(init.sampling.stop_ids, plan.admitted[0].sampling.stop_ids);
  EXPECT_EQ(init.sampling.logprobs, 5);
  EXPECT_EQ(init.sampling.prompt_logprobs, 0);
  EXPECT_EQ(init.blocks, plan.admitted[0].blocks);
  EXPECT_EQ(init.history, plan.admitted[0].history);
  EXPECT_TRUE(back.admitted[1].blocks.empty());
  ASSERT_EQ(back.rows.size(), 2u);
  EXPECT_TRUE(back.rows[0].sample);
  EXPECT_FALSE(back.rows[0].prompt_logprobs);
  EXPECT_EQ(back.rows[0].next_token, -1);
  EXPECT_EQ(back.rows[1].slot, 6);
  EXPECT_EQ(back.rows[1].position, 0);
  EXPECT_EQ(back.rows[1].count, 2);
  EXPECT_EQ(back.rows[1].token_begin, 1);
  EXPECT_EQ(back.rows[1].block_begin, 0);
  EXPECT_EQ(back.rows[1].block_count, 1);
  EXPECT_TRUE(back.rows[1].prompt_logprobs);
  EXPECT_EQ(back.rows[1].next_token, 77);
  EXPECT_EQ(back.tokens, plan.tokens);
  EXPECT_EQ(back.blocks, plan.blocks);
}

TEST(StepPlan, ResultComesBackAsItWas) {
  StepResult back;
  back.rows.resize(5);
  decode(bytes_of(sample_result()), back);
  EXPECT_EQ(back.step, 9u);
  ASSERT_EQ(back.rows.size(), 2u);
  const RowResult& row = back.rows[0];
  EXPECT_EQ(row.slot, 1);
  EXPECT_EQ(row.token, 42);
  EXPECT_EQ(row.logprob, -0.5f);
  ASSERT_EQ(row.top.size(), 2u);
  EXPECT_EQ(row.top[1].token, 7);
  EXPECT_EQ(row.top[1].logprob, -1.5f);
  ASSERT_EQ(row.prompt.size(), 2u);
  EXPECT_EQ(row.prompt[1].logprob, -3.0f);
  ASSERT_EQ(row.prompt_top.size(), 2u);
  EXPECT_EQ(row.prompt_top[0][0].token, 1);
  EXPECT_TRUE(row.prompt_top[1].empty());
  EXPECT_EQ(back.rows[1].token, -1);
}

TEST(StepPlan, EveryTruncationIsRefused) {
  const std::vector<std::byte> plan = bytes_of(sample_plan());
  const std::vector<std::byte> result = bytes_of(sample_result());
  for (size_t size = 0; size < plan.size(); ++size) {
    EXPECT_TRUE(refused<StepPlan>({plan.data(), size})) << size;
  }
  for (size_t size = 0; size < result.size(); ++size) {
    EXPECT_TRUE(refused<StepResult>({result.data(), size})) << size;
  }
}

TEST(StepPlan, TrailingBytesAndForeignMessagesAreRefused) {
  std::vector<std::byte> plan = bytes_of(sample_plan());
  EXPECT_TRUE(refused<StepResult>(plan));
  plan.push_back(std::byte{0});
  EXPECT_TRUE(refused<StepPlan>(plan));
  EXPECT_TRUE(refused<StepPlan>(bytes_of(sample_result())));
}

TEST(StepPlan, RowsOutsideThePlanAreRefused) {
  const auto broken = [](auto change) {
    StepPlan plan = sample_plan();
    change(plan.rows[1]);
    return refused<StepPlan>(bytes_of(plan));
  };
  EXPECT_FALSE(broken([](PlanRow&) {}));
  EXPECT_TRUE(broken([](PlanRow& row) { row.slot = -1; }));
  EXPECT_TRUE(broken([](PlanRow& row) { row.position = -1; }));
  EXPECT_TRUE(broken([](PlanRow& row) { row.count = 0; }));
  EXPECT_TRUE(broken([](PlanRow& row) { row.count = 3; }));
  EXPECT_TRUE(broken([](PlanRow& row) { row.token_begin = -1; }));
  EXPECT_TRUE(broken([](PlanRow& row) { row.token_begin = 2147483647; }));
  EXPECT_TRUE(broken([](PlanRow& row) { row.block_begin = 2; }));
  EXPECT_TRUE(broken([](PlanRow& row) { row.block_count = -1; }));
}

// Random changes of valid messages: decoded or refused, never a crash or a huge allocation.
TEST(StepPlan, RandomCorruptionNeverCrashes) {
  std::mt19937_64 random(7);
  const std::vector<std::byte> plan = bytes_of(sample_plan());
  const std::vector<std::byte> result = bytes_of(sample_result());
  int refusals = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> bytes = i % 2 ? plan : result;
    for (uint64_t changes = 1 + random() % 4; changes > 0; --changes) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random() % 3 ? random() : 0xff);
    }
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    refusals += i % 2 ? refused<StepPlan>(bytes) : refused<StepResult>(bytes);
  }
  EXPECT_GT(refusals, 1000);
}

}  // namespace
}  // namespace trireme
