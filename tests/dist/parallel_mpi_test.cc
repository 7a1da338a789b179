// The communicator over MPI: run under launch/mpirun with any number of ranks. All ranks run every
// test in the same order; an assertion that fails on any rank fails the program.
#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "parallel/mpi_communicator.h"
#include "parallel/world.h"
#include "tests/support/communicator_cases.h"
#include "tests/support/model_shapes.h"

namespace trireme {
namespace {

Communicator* g_world = nullptr;

std::vector<CommunicatorCase> all_cases() {
  auto cases = collective_cases();
  for (auto& one : point_to_point_cases()) cases.push_back(one);
  return cases;
}

class MpiWorld : public testing::TestWithParam<CommunicatorCase> {};

TEST_P(MpiWorld, Case) {
  GetParam().run(*g_world);
  g_world->barrier();
}

INSTANTIATE_TEST_SUITE_P(Communicator, MpiWorld, testing::ValuesIn(all_cases()),
                         [](const auto& info) { return info.param.name; });

// The same over messages alone, as between hosts.
class MpiMessages : public testing::TestWithParam<CommunicatorCase> {};

TEST_P(MpiMessages, Case) {
  if (g_world->size() == 1) return;  // nobody to send to
  static auto messages =
      make_mpi_communicator(MPI_COMM_WORLD, "messages", std::make_shared<MpiProcess>(true), false);
  messages->set_deadline(std::chrono::seconds(20));
  GetParam().run(*messages);
  messages->barrier();
}

INSTANTIATE_TEST_SUITE_P(Communicator, MpiMessages, testing::ValuesIn(all_cases()),
                         [](const auto& info) { return info.param.name; });

TEST(Mpi, ManyRandomAllReduces) { check_random_all_reduces(*g_world, 100'000, 2000, 1); }

// The whole of what a server has: communicators, stage edges and the doorbell, over MPI. Idle ranks
// use no CPU (2% of a core would be 10 ms here), though Open MPI ranks that wait in MPI would spin.
TEST(Mpi, WorldSleepsOnItsDoorbell) {
  const ModelShape model = small_shape();
  const int size = g_world->size();
  const ParallelLayout layout =
      make_layout(choose_layout(model, even_topology(size, size)), model, size);
  World world = make_world(g_world->split(0, "control"), layout);
  check_random_all_reduces(*world.tp, 50, 5000, 9);
  if (world.rank == 0) {
    usleep(500'000);
    world.doorbell->ring();
  } else {
    const auto cpu_ms = [] { return 1000.0 * static_cast<double>(clock()) / CLOCKS_PER_SEC; };
    const double before = cpu_ms();
    world.doorbell->sleep();
    EXPECT_LT(cpu_ms() - before, 10.0);
  }
  world.control->barrier();
}

// Messages of ranks that do not agree, or are in different operations, never meet.
TEST(Mpi, MismatchesOverMessagesWaitForTheirDeadline) {
  if (g_world->size() == 1) return;
  const std::function<void(Communicator&)> cases[] = {
      [](Communicator& ranks) {
        std::vector<float> data(8);
        ranks.set_agreement(5);
        ranks.all_reduce_sum(data);
        ranks.set_agreement(ranks.rank() == 0 ? 6 : 7);
        ranks.all_reduce_sum(data);
      },
      [](Communicator& ranks) {
        std::vector<float> data(8 * static_cast<size_t>(ranks.size()));
        const auto bytes = std::as_writable_bytes(std::span(data));
        if (ranks.rank() == 0) return ranks.all_reduce_sum(std::span(data).first(8));
        ranks.all_gather(bytes.first(32), bytes);
      }};
  for (const auto& mismatched : cases) {
    // Of a family of its own each: what was sent and not received stays in it.
    auto process = std::make_shared<MpiProcess>(true);
    auto ranks = make_mpi_communicator(MPI_COMM_WORLD, "messages", process, false);
    ranks->set_deadline(std::chrono::milliseconds(300));
    g_world->barrier();
    try {
      mismatched(*ranks);
      ADD_FAILURE() << "ranks that differ have met";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kDeadlineExceeded) << error.what();
    }
    g_world->barrier();
    ranks->abort("the test is over");
  }
}

// A rank that waits for something else, as for a GPU, must not keep back what it has sent: a
// message that the receiver cannot fetch by itself leaves only while its sender is inside MPI. (One
// that it can fetch does in any case; a second run of this program rules that out.)
TEST(Mpi, LargeMessagesLeaveWhileTheSenderOnlyChecks) {
  if (g_world->size() == 1) return;
  const std::string received =
      "/dev/shm/trireme-received-" + std::to_string(getppid());  // of mpirun
  std::vector<std::byte> data(3 << 20);
  if (g_world->rank() == 0) unlink(received.c_str());  // of a run that was cut off
  g_world->barrier();
  if (g_world->rank() == 0) {
    std::fill(data.begin(), data.end(), std::byte{7});
    g_world->send(data, 1, 5);
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (access(received.c_str(), F_OK) != 0 && std::chrono::steady_clock::now() < until) {
      g_world->check();
      usleep(100);
    }
    EXPECT_EQ(access(received.c_str(), F_OK), 0) << "the message has not left";
  } else if (g_world->rank() == 1) {
    usleep(100'000);  // longer than send() stays with a message
    g_world->recv(data, 0, 5);
    EXPECT_EQ(data.front(), std::byte{7});
    EXPECT_EQ(data.back(), std::byte{7});
    std::ofstream(received).put('x');
  }
  g_world->barrier();
  if (g_world->rank() == 0) unlink(received.c_str());
}

// Fewer bytes than a rank waits for are no answer.
TEST(Mpi, OtherSizesOverMessagesAreRefused) {
  if (g_world->size() == 1) return;
  auto process = std::make_shared<MpiProcess>(true);
  auto ranks = make_mpi_communicator(MPI_COMM_WORLD, "messages", process, false);
  ranks->set_deadline(std::chrono::seconds(10));
  std::vector<float> data(ranks->rank() == 0 ? 4 : 8);
  g_world->barrier();
  if (ranks->rank() == 0) {  // receives more than it has room for
    EXPECT_THROW(ranks->all_reduce_sum(data), Error);
  } else {
    try {
      ranks->all_reduce_sum(data);
      ADD_FAILURE() << "half a vector was taken for a whole one";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("mismatch"), std::string::npos) << error.what();
    }
  }
  g_world->barrier();
  ranks->abort("the test is over");
}

// In a family of communicators of its own: all that was split from one is aborted with it.
TEST(Mpi, AbortReachesEveryRankOfTheHost) {
  if (g_world->size() == 1) return;
  auto process = std::make_shared<MpiProcess>(true);
  auto doomed = make_mpi_communicator(MPI_COMM_WORLD, "doomed", process);
  auto child = doomed->split(0, "child");
  doomed->set_deadline(std::chrono::seconds(10));
  g_world->barrier();  // nobody is still inside split()
  if (doomed->rank() == 0) doomed->abort("a flood");
  std::byte byte{};
  const std::function<void()> waits[] = {[&] { child->recv(std::span(&byte, 1), 0, 1); },
                                         [&] { doomed->barrier(); }, [&] { child->barrier(); },
                                         [&] { child->probe(0, 1, Wait::kForever); },
                                         [&] { child->check(); }};
  for (const auto& wait : waits) {
    try {
      wait();
      ADD_FAILURE() << "passed a barrier of an aborted world";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kAborted) << error.what();
      EXPECT_NE(std::string(error.what()).find("a flood"), std::string::npos) << error.what();
    }
  }
  g_world->barrier();
}

// Failures of ranks other than 0 are printed too, but not their progress.
class OnlyFailures : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s:%d: %s\n", g_world->rank(),
                 result.file_name() ? result.file_name() : "?", result.line_number(),
                 result.summary());
  }
};

int run(int argc, char** argv) {
  MpiEnvironment environment(&argc, &argv);
  auto world = environment.make_control();
  world->set_deadline(std::chrono::seconds(20));
  g_world = world.get();
  testing::InitGoogleTest(&argc, argv);
  if (world->rank() != 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new OnlyFailures);
  }
  return RUN_ALL_TESTS();
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) { return trireme::run(argc, argv); }
