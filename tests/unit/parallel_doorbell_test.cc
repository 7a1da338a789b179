// Doorbell and World over threads: rings are counted, sleepers use no CPU, a dead rank 0 wakes.
#include "parallel/doorbell.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/error.h"
#include "parallel/socket.h"
#include "parallel/world.h"
#include "tests/support/communicator_cases.h"
#include "tests/support/errors.h"
#include "tests/support/model_shapes.h"
#include "tests/support/run_ranks.h"

namespace trireme {
namespace {

TEST(Doorbell, AWorldOfOneNeverSleeps) {
  auto single = make_single_communicator();
  auto doorbell = make_doorbell(*single);
  doorbell->ring();
  doorbell->sleep();
}

TEST(Doorbell, EveryRingWakesOnce) {
  run_ranks(4, [](Communicator& ranks) {
    auto doorbell = make_doorbell(ranks);
    for (int round = 0; round < 200; ++round) {
      if (ranks.rank() == 0) {
        doorbell->ring();
      } else {
        doorbell->sleep();
      }
      if (round % 50 == 0) ranks.barrier();
    }
    // Rings before the sleep are kept.
    if (ranks.rank() == 0) {
      for (int i = 0; i < 3; ++i) doorbell->ring();
    }
    ranks.barrier();
    for (int i = 0; i < 3 && ranks.rank() != 0; ++i) doorbell->sleep();
    ranks.barrier();
  });
}

TEST(Doorbell, SleepsUntilRung) {
  std::atomic<bool> rung{false};
  run_ranks(3, [&](Communicator& ranks) {
    auto doorbell = make_doorbell(ranks);
    if (ranks.rank() == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      rung = true;
      doorbell->ring();
    } else {
      doorbell->sleep();
      EXPECT_TRUE(rung);
    }
    ranks.barrier();
  });
}

int turn_of_this_thread() {
  struct {
    uint32_t size = 48, policy = 0;
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t runtime = 0, deadline = 0, period = 0;
  } attributes;
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return -1;
  return static_cast<int>(attributes.runtime);
}

TEST(Doorbell, LeavesThePriorityOfItsCallersAsItWas) {
  run_ranks(2, [](Communicator& ranks) {
    auto doorbell = make_doorbell(ranks);
    const int turn = turn_of_this_thread();
    const int nice = getpriority(PRIO_PROCESS, 0);
    if (ranks.rank() == 0) {
      doorbell->ring();
    } else {
      doorbell->sleep();
    }
    EXPECT_EQ(turn_of_this_thread(), turn);
    EXPECT_EQ(getpriority(PRIO_PROCESS, 0), nice);
    ranks.barrier();
  });
}

double cpu_seconds_of_this_thread() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// An idle rank uses no CPU: 2% of a core would be 20 ms.
TEST(Doorbell, SleepersUseNoCpu) {
  run_ranks(4, [](Communicator& ranks) {
    auto doorbell = make_doorbell(ranks);
    if (ranks.rank() == 0) {
      std::this_thread::sleep_for(std::chrono::seconds(1));
      doorbell->ring();
    } else {
      const double before = cpu_seconds_of_this_thread();
      doorbell->sleep();
      EXPECT_LT(cpu_seconds_of_this_thread() - before, 0.020);
    }
    ranks.barrier();
  });
}

TEST(Doorbell, SleepersWakeWhenRankZeroIsGone) {
  run_ranks(3, [](Communicator& ranks) {
    auto doorbell = make_doorbell(ranks);
    ranks.barrier();
    if (ranks.rank() == 0) {
      doorbell.reset();
    } else {
      expect_error(ErrorCode::kUnavailable, "rank 0 is gone", [&] { doorbell->sleep(); });
    }
    ranks.barrier();
  });
}

TEST(Doorbell, RingNamesTheRankThatIsGone) {
  run_ranks(2, [](Communicator& ranks) {
    auto doorbell = make_doorbell(ranks);
    if (ranks.rank() == 1) doorbell.reset();
    ranks.barrier();
    if (ranks.rank() == 0) {
      expect_error(ErrorCode::kUnavailable, "rank 1 is gone", [&] {
        for (int i = 0; i < 1000; ++i) doorbell->ring();  // the first may still be buffered
      });
    }
    ranks.barrier();
  });
}

TEST(Socket, SaysWhyItCannotConnect) {
  uint16_t port = 0;
  { const Socket closed_again = listen_tcp(true, 1, port); }
  std::string problem;
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  EXPECT_FALSE(connect_tcp("127.0.0.1", port, until, problem).open());
  EXPECT_NE(problem.find("refused"), std::string::npos) << problem;
  EXPECT_FALSE(connect_tcp("not an address", port, until, problem).open());
}

TEST(Socket, WaitsHaveDeadlines) {
  uint16_t port = 0;
  const Socket listener = listen_tcp(true, 4, port);
  const auto soon = [] { return std::chrono::steady_clock::now() + std::chrono::milliseconds(20); };
  EXPECT_FALSE(accept_tcp(listener, soon()).open());
  std::string problem;
  const Socket client = connect_tcp("127.0.0.1", port, soon(), problem);
  const Socket server = accept_tcp(listener, soon());
  ASSERT_TRUE(client.open() && server.open()) << problem;
  std::byte byte{};
  EXPECT_FALSE(read_all(server, std::span(&byte, 1), soon()));
  std::vector<std::byte> flood(64 << 20);  // more than the sockets buffer
  EXPECT_FALSE(write_all(client, flood, soon()));
}

TEST(World, ConnectsTheRanksOfALayout) {
  const ModelShape model = small_shape();
  auto ranks = make_thread_communicators(5, "control");
  std::vector<std::thread> threads;
  for (auto& control : ranks) {
    threads.emplace_back([&model, control = std::move(control)]() mutable {
      const ParallelLayout layout = make_layout({{{2, 0}, {3, 0}}}, model, 5);
      World world = make_world(std::move(control), layout);
      EXPECT_EQ(world.control->size(), 5);
      EXPECT_EQ(world.data->size(), 5);
      EXPECT_EQ(world.data->rank(), world.rank);
      EXPECT_EQ(world.stage(), world.rank < 2 ? 0 : 1);
      EXPECT_EQ(world.first_stage(), world.rank < 2);
      EXPECT_EQ(world.last_stage(), world.rank >= 2);
      EXPECT_EQ(world.tp->size(), world.rank < 2 ? 2 : 3);
      EXPECT_EQ(world.tp->rank(), world.tensor_rank());
      EXPECT_EQ(world.tp->name(), "tp");
      check_random_all_reduces(*world.tp, 20, 1000, static_cast<uint64_t>(world.stage()));
      EXPECT_EQ(&world.shard(),
                &world.layout.stage(world.rank).shards[static_cast<size_t>(world.tensor_rank())]);
      if (world.rank == 0) {
        world.doorbell->ring();
      } else {
        world.doorbell->sleep();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST(World, RefusesALayoutOfAnotherSize) {
  const ModelShape model = small_shape();
  const ParallelLayout layout = make_layout({{{2, 0}}}, model, 2);
  expect_error(ErrorCode::kInvalidArgument, "takes 2 ranks, but the world has 1",
               [&] { make_world(make_single_communicator(), layout); });
}

}  // namespace
}  // namespace trireme
