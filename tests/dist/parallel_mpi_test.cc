// The communicator over MPI: run under launch/mpirun with any number of ranks. All ranks run every
// test in the same order; an assertion that fails on any rank fails the program.
#include <gtest/gtest.h>

#include <unistd.h>

#include "parallel/mpi_communicator.h"
#include "parallel/world.h"
#include "tests/support/communicator_cases.h"

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
