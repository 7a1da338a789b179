#include <gtest/gtest.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"

namespace trireme {
namespace {

TEST(ThreadPool, CallsEachThreadOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    std::vector<int> calls(static_cast<size_t>(threads), 0);
    const auto caller = std::this_thread::get_id();
    for (int i = 0; i < 500; ++i) {
      pool.run([&](int thread) {
        ++calls[static_cast<size_t>(thread)];
        EXPECT_EQ(thread == 0, std::this_thread::get_id() == caller);
      });
    }
    for (const int count : calls) EXPECT_EQ(count, 500);
  }
}

// What one loop wrote, the next one and the caller see; whether the workers sleep or spin between.
TEST(ThreadPool, LoopsAreOrdered) {
  ThreadPool pool(4);
  std::vector<int64_t> values(4, 0);
  int64_t expected = 1;
  for (int i = 0; i < 300; ++i) {
    pool.run([&](int thread) { values[static_cast<size_t>(thread)] += i; });
    int64_t total = 0;
    for (const int64_t v : values) total += v;
    expected = int64_t{4} * i * (i + 1) / 2;
    ASSERT_EQ(total, expected);
    if (i % 30 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

TEST(ThreadPool, RethrowsOnTheCaller) {
  ThreadPool pool(3);
  std::atomic<int> ended{0};
  for (int bad = 0; bad < 3; ++bad) {
    ended = 0;
    EXPECT_THROW(pool.run([&](int thread) {
      ended.fetch_add(1);
      if (thread == bad) throw std::runtime_error("body");
    }),
                 std::runtime_error);
    EXPECT_EQ(ended, 3);  // the others were not abandoned
  }
  pool.run([&](int) { ended.fetch_add(1); });  // and the pool works on
  EXPECT_EQ(ended, 6);
}

TEST(ThreadPool, RefusesNoThreads) {
  EXPECT_THROW(ThreadPool pool(0), Error);
  EXPECT_THROW(ThreadPool pool(-3), Error);
}

// Many pools at once, more threads than cores: no loop may depend on a thread that never runs.
TEST(ThreadPool, OversubscribedPoolsFinish) {
  std::vector<std::thread> owners;
  std::atomic<int64_t> calls{0};
  for (int i = 0; i < 4; ++i) {
    owners.emplace_back([&] {
      ThreadPool pool(3);
      for (int j = 0; j < 300; ++j) pool.run([&](int) { calls.fetch_add(1); });
    });
  }
  for (std::thread& owner : owners) owner.join();
  EXPECT_EQ(calls, 4 * 3 * 300);
}

// An idle pool sleeps: the process's processor time stands still.
TEST(ThreadPool, IdleUsesNoProcessor) {
  ThreadPool pool(4);
  pool.run([](int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const auto cpu_seconds = [] {
    timespec t{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  };
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(cpu_seconds() - before, 0.05);
}

TEST(SplitRange, CoversEverythingOnceAtGrains) {
  for (const int64_t count : {0, 1, 7, 16, 100, 1001}) {
    for (const int threads : {1, 2, 3, 8}) {
      for (const int64_t grain : {1, 4, 16}) {
        int64_t next = 0;
        for (int t = 0; t < threads; ++t) {
          const Range r = split_range(count, t, threads, grain);
          ASSERT_EQ(r.begin, next);
          ASSERT_LE(r.begin, r.end);
          ASSERT_TRUE(r.begin % grain == 0 || r.begin == count);
          next = r.end;
        }
        ASSERT_EQ(next, count);
      }
    }
  }
}

}  // namespace
}  // namespace trireme
