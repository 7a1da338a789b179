#include "runtime/largest_steps.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "runtime/instance_memory.h"
#include "tests/unit/engine_world.h"

namespace trireme {
namespace {

ModelConfig model_of(int64_t vocab) {
  ModelConfig model;
  model.vocab = vocab;
  return model;
}

TEST(LargestSteps, FitTheLimitsAndReachThem) {
  SchedulerConfig config;
  config.token_budget = 1000;
  config.max_chunk = 300;
  config.max_rows = 70;
  config.max_running = 90;
  const std::vector<int32_t> recorded{1, 2, 8, 64, 70};
  const auto plans = largest_steps(config, model_of(50), 2, 16, recorded);
  size_t most_tokens = 0;
  std::multiset<size_t> decodes;
  std::set<size_t> prompts;
  for (const StepPlan& plan : plans) {
    ASSERT_EQ(plan.epoch, 0u);
    ASSERT_LE(plan.rows.size(), 70u);
    ASSERT_EQ(plan.admitted.size(), plan.rows.size());
    size_t tokens = 0;
    for (size_t i = 0; i < plan.rows.size(); ++i) {
      const PlanRow& row = plan.rows[i];
      ASSERT_EQ(row.slot, plan.admitted[i].slot);
      ASSERT_LE(row.count, 300);
      ASSERT_EQ(row.token_begin, static_cast<int32_t>(tokens));
      tokens += static_cast<size_t>(row.count);
      ASSERT_EQ(plan.admitted[i].blocks.size(), 2u);
      for (const auto& blocks : plan.admitted[i].blocks) {
        ASSERT_GE(static_cast<int32_t>(blocks.size()) * 16, row.position + row.count);
        ASSERT_TRUE(std::all_of(blocks.begin(), blocks.end(), [](int32_t b) { return b == 0; }));
      }
    }
    ASSERT_EQ(plan.tokens.size(), tokens);
    for (const int32_t token : plan.tokens) ASSERT_TRUE(token >= 0 && token < 50);
    most_tokens = std::max(most_tokens, tokens);
    if (plan.rows[0].count == 1) {
      decodes.insert(plan.rows.size());
    } else {
      prompts.insert(tokens);
    }
  }
  EXPECT_EQ(most_tokens, 1000u);
  for (const int32_t rows : recorded) {
    EXPECT_GE(decodes.count(static_cast<size_t>(rows)), 2u) << rows;
  }
  // Down to what decode steps have had.
  EXPECT_EQ(prompts, (std::set<size_t>{1000, 768, 512, 384, 256, 192, 128, 96}));
}

TEST(LargestSteps, TheSmallestLimits) {
  SchedulerConfig config;
  config.token_budget = config.max_chunk = config.max_rows = config.max_running = 1;
  for (const StepPlan& plan : largest_steps(config, model_of(2), 1, 16, {})) {
    EXPECT_LE(plan.tokens.size(), 1u);
  }
}

std::vector<int32_t> sizes_of(Instance& instance) {
  return recorded_sizes(instance.backend(), most_decode_rows(instance.scheduler_config()));
}

void run_on(Instance& instance, const std::vector<int32_t>& recorded) {
  const KvPoolConfig& pool = instance.pool_config();
  run_largest_steps(instance.worker(),
                    largest_steps(instance.scheduler_config(), instance.config(),
                                  pool.blocks.size(), pool.block_size, recorded));
}

// What comes after them is as if they had not been.
TEST(LargestSteps, LeaveNothingBehind) {
  const auto options = small_options("qwen3-bf16", "tensor=1");
  EngineWorld fresh(options), used(options);
  EXPECT_TRUE(sizes_of(used.instance()).empty());  // the CPU records nothing
  run_on(used.instance(), {1, 2, 3});
  std::vector<Sequence> sequences;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    sequences.push_back(random_sequence(seed, 128, 20, 12, seed % 2 == 1));
  }
  const auto want = fresh.run(sequences), got = used.run(sequences);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_EQ(got[i].tokens, want[i].tokens);
}

TEST(LargestSteps, OfEveryRankOfALayout) {
  log::init("off");
  auto controls = make_thread_communicators(4, "control");
  std::vector<std::thread> threads;
  std::vector<int> finished(4, 0);
  for (size_t rank = 0; rank < 4; ++rank) {
    threads.emplace_back([&, rank] {
      controls[rank]->set_deadline(std::chrono::seconds(30));
      Instance instance(std::move(controls[rank]),
                        small_options("llama-plain", "tensor=2,pipeline=2"));
      run_on(instance, {2});
      finished[rank] = 1;
      instance.world().control->barrier();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(finished, (std::vector<int>(4, 1)));
}

// Two ranks with a GPU each: 10 and 8 GiB are free, 1 GiB of each is reserved.
MemoryNeeds gpu_needs(int rank) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  MemoryNeeds needs;
  needs.weights = 3 * kGiB;
  needs.scratch = kGiB;
  needs.block_bytes = {1 << 20};
  needs.wanted_blocks = {1 << 17};
  needs.least_blocks = {10};
  needs.device = DeviceMemory{(rank == 0 ? 10 : 8) * kGiB, 80 * kGiB};
  needs.reserve = kGiB;
  needs.advice = "buy more";
  return needs;
}

std::vector<std::string> agreed(const std::function<MemoryNeeds(int)>& needs) {
  log::init("off");
  auto controls = make_thread_communicators(2, "control");
  std::vector<std::string> found(2);
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        const auto blocks = agree_on_kv_blocks(*controls[rank], needs(static_cast<int>(rank)));
        found[rank] = std::to_string(blocks.at(0));
      } catch (const Error& error) {
        found[rank] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return found;
}

TEST(DeviceAccount, TheRankWithTheLeastDecides) {
  // 8 - 1 - 4 = 3 GiB of 1 MiB blocks.
  EXPECT_EQ(agreed(gpu_needs), (std::vector<std::string>(2, "3072")));
  // What is taken already is in the account and not in what is free: 8 - 1.
  const auto loaded = agreed([](int rank) {
    MemoryNeeds needs = gpu_needs(rank);
    needs.taken = needs.weights + needs.scratch;
    return needs;
  });
  EXPECT_EQ(loaded, (std::vector<std::string>(2, "7168")));
  const auto given = agreed([](int rank) {
    MemoryNeeds needs = gpu_needs(rank);
    needs.kv_memory = int64_t{5} << 20;
    needs.least_blocks = {5};
    return needs;
  });
  EXPECT_EQ(given, (std::vector<std::string>(2, "5")));
}

TEST(DeviceAccount, WhatIsMissingIsSaid) {
  const auto found = agreed([](int rank) {
    MemoryNeeds needs = gpu_needs(rank);
    needs.weights = int64_t{6} << 30;
    return needs;
  });
  for (const std::string& what : found) {
    EXPECT_NE(what.find("GPU of rank 1"), std::string::npos) << what;
    EXPECT_NE(what.find("missing 10.00 MiB; buy more"), std::string::npos) << what;
  }
}

}  // namespace
}  // namespace trireme
