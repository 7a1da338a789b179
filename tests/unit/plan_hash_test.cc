// The name of a plan: another for any other plan, and what travels with it.
#include "runtime/plan_hash.h"

#include <gtest/gtest.h>

#include <set>

#include "base/error.h"
#include "runtime/step_plan.h"
#include "runtime/worker_messages.h"
#include "tests/support/errors.h"

namespace trireme {
namespace {

std::vector<std::byte> encoded_plan() {
  StepPlan plan;
  plan.epoch = 1;
  plan.step = 812;
  plan.tokens = {5, 6, 7, 0, 0};
  plan.blocks = {3, 4};
  plan.rows.resize(2);
  plan.rows[0].count = 3;
  plan.rows[0].block_count = 1;
  plan.rows[1].slot = 1;
  plan.rows[1].count = 2;
  plan.rows[1].token_begin = 3;
  plan.rows[1].block_begin = 1;
  plan.rows[1].block_count = 1;
  std::vector<std::byte> bytes;
  encode(plan, bytes);
  return bytes;
}

TEST(PlanHash, EveryBitCounts) {
  std::vector<std::byte> bytes = encoded_plan();
  const uint64_t seed = plan_seed("tensor=2");
  std::set<uint64_t> seen{hash_bytes(bytes, seed)};
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= std::byte(1u << bit % 8);
    EXPECT_TRUE(seen.insert(hash_bytes(bytes, seed)).second) << bit;
    bytes[bit / 8] ^= std::byte(1u << bit % 8);
  }
  // So do length, order, layout.
  bytes.push_back(std::byte{0});
  EXPECT_TRUE(seen.insert(hash_bytes(bytes, seed)).second);
  bytes.push_back(std::byte{0});
  EXPECT_TRUE(seen.insert(hash_bytes(bytes, seed)).second);
  EXPECT_TRUE(seen.insert(hash_bytes(bytes, plan_seed("tensor=3"))).second);
  EXPECT_FALSE(seen.contains(0));
}

TEST(PlanHash, TravelsWithThePlan) {
  const std::vector<std::byte> plan = encoded_plan();
  std::vector<std::byte> message = plan;
  const uint64_t hash = seal_plan(message, 9);
  EXPECT_EQ(message.size(), plan.size() + 8);
  message[3] ^= std::byte{1};
  std::vector<std::byte> damaged = message;
  message[3] ^= std::byte{1};
  const PlanHashes whole = unseal_plan(message, 9);
  EXPECT_EQ(whole.own, hash);
  EXPECT_EQ(whole.sent, hash);
  EXPECT_EQ(message, plan);
  const PlanHashes wrong = unseal_plan(damaged, 9);
  EXPECT_EQ(wrong.sent, hash);
  EXPECT_NE(wrong.own, hash);
  std::vector<std::byte> nothing(7);
  expect_error(ErrorCode::kInternal, "a plan of 7 bytes", [&] { unseal_plan(nothing, 9); });
}

}  // namespace
}  // namespace trireme
