#include "runtime/warm_up.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "runtime/instance_memory.h"
#include "tests/unit/engine_world.h"

namespace trireme {
namespace {

void warm_up(Instance& instance) {
  const WarmUpSizes sizes =
      warm_up_sizes(instance.scheduler_config(), instance.pool_config(), instance.config().vocab);
  warm_up_largest(instance.worker(), instance.backend(), sizes);
  warm_up_all_sizes(instance.worker(), instance.backend(), sizes);
}

// What comes after the steps is as if they had not been.
TEST(WarmUp, LeavesNothingBehind) {
  const auto options = small_options("qwen3-bf16", "tensor=1");
  EngineWorld fresh(options), warm(options);
  warm_up(warm.instance());
  std::vector<Sequence> sequences;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    sequences.push_back(random_sequence(seed, 128, 20, 12, seed % 2 == 1));
  }
  const auto want = fresh.run(sequences), got = warm.run(sequences);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_EQ(got[i].tokens, want[i].tokens);
}

TEST(WarmUp, OfEveryRankOfALayout) {
  log::init("off");
  auto controls = make_thread_communicators(4, "control");
  std::vector<std::thread> threads;
  std::vector<int> finished(4, 0);
  for (size_t rank = 0; rank < 4; ++rank) {
    threads.emplace_back([&, rank] {
      controls[rank]->set_deadline(std::chrono::seconds(30));
      Instance instance(std::move(controls[rank]),
                        small_options("llama-plain", "tensor=2,pipeline=2"));
      warm_up(instance);
      finished[rank] = 1;
      instance.world().control->barrier();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(finished, (std::vector<int>(4, 1)));
}

// Two ranks with a GPU each: 10 and 8 GiB are free.
MemoryNeeds gpu_needs(int rank) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  MemoryNeeds needs;
  needs.weights = 3 * kGiB;
  needs.scratch = kGiB;
  needs.block_bytes = {1 << 20};
  needs.wanted_blocks = {1 << 17};
  needs.least_blocks = {10};
  needs.device = DeviceMemory{(rank == 0 ? 10 : 8) * kGiB, 80 * kGiB};
  needs.advice = [] { return std::string("buy more"); };
  return needs;
}

// The blocks that two ranks agree on, or their error.
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
  // 8 - 3 - 1 GiB and 1 for what is not known yet, in blocks of 1 MiB.
  EXPECT_EQ(agreed(gpu_needs), (std::vector<std::string>(2, "3072")));
  // Once everything else is there: 8 GiB less 384 MiB.
  const auto measured = agreed([](int rank) {
    MemoryNeeds needs = gpu_needs(rank);
    needs.measured = true;
    needs.weights = needs.scratch = 0;
    return needs;
  });
  EXPECT_EQ(measured, (std::vector<std::string>(2, "7808")));
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
