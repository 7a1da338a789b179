// Deadlines, aborts and refusals of device communicators: part of nccl_mpi_test.
#include <thread>

#include "parallel/mpi_communicator.h"
#include "tests/dist/nccl_fixture.h"

namespace trireme {
namespace {

using NcclFailure = Nccl;

double seconds_of(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST_F(NcclFailure, DeadlineNamesTheOperation) {
  auto late = connect("late");
  late->set_deadline(std::chrono::milliseconds(300));
  g_host->barrier();
  if (g_host->rank() == 0) {
    const DeviceMemory data(2000);
    const TestStream stream;
    const double took = seconds_of([&] {
      expect_error(ErrorCode::kDeadlineExceeded,
                   {"late: rank 0 of", "all_reduce_sum of 2000 bytes", "waited 300 ms"}, [&] {
                     late->all_reduce_sum(data.data(), 1000, DType::kBF16, stream.handle());
                     late->wait(stream.handle());
                   });
    });
    EXPECT_LT(took, 5.0);
    // What waited on the device has ended, and the device is as good as new.
    must(cudaStreamSynchronize(stream.get()));
    expect_error(ErrorCode::kAborted, {"late", "waited 300 ms"},
                 [&] { late->all_reduce_sum(data.data(), 1, DType::kF32, stream.handle()); });
  }
  g_host->barrier();
  late->abort("the test is over");
  late.reset();
  connect("again")->barrier();
}

TEST_F(NcclFailure, DeadlineOfASplitAlone) {
  auto late = connect("late");
  late->set_deadline(std::chrono::milliseconds(300));
  if (g_host->rank() == 0) {
    expect_error(ErrorCode::kDeadlineExceeded, {"split"}, [&] { late->split_device(0, "child"); });
  }
  g_host->barrier();
  late->abort("the test is over");
}

TEST_F(NcclFailure, AbortFromAnotherThread) {
  auto doomed = connect("doomed");
  auto child = doomed->split_device(0, "child");
  if (g_host->rank() == 0) {
    const DeviceMemory data(4);
    const TestStream stream;
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      doomed->abort("a flood");
    });
    const double took = seconds_of([&] {
      expect_error(ErrorCode::kAborted, {"a flood"}, [&] {
        child->all_reduce_sum(data.data(), 1, DType::kF32, stream.handle());
        child->wait(stream.handle());
      });
    });
    other.join();
    EXPECT_LT(took, 5.0);
    expect_error(ErrorCode::kAborted, {"a flood"}, [&] { doomed->barrier(); });
    expect_error(ErrorCode::kAborted, {"a flood"}, [&] { doomed->check(); });
  }
  g_host->barrier();
  doomed->abort("the test is over");
}

// A host that learns of the world's end tells who waits for the device.
TEST_F(NcclFailure, AbortOfTheHostUnblocksPeers) {
  auto host = make_mpi_communicator(MPI_COMM_WORLD, "doomed", std::make_shared<MpiProcess>(true));
  auto ranks = make_nccl_communicator(*host, g_device, "device");
  g_host->barrier();
  if (g_host->rank() == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    host->abort("a flood");
    expect_error(ErrorCode::kAborted, {"a flood"}, [&] { ranks->check(); });
  } else {
    const DeviceMemory data(4);
    const TestStream stream;
    const double took = seconds_of([&] {
      expect_error(ErrorCode::kAborted, {"a flood"}, [&] {
        ranks->all_reduce_sum(data.data(), 1, DType::kF32, stream.handle());
        ranks->wait(stream.handle());
      });
    });
    EXPECT_LT(took, 5.0);
  }
  g_host->barrier();
}

// NCCL frees a communicator only when its graphs are gone; a deadline does not wait for that.
TEST_F(NcclFailure, DeadlineInAReplayedGraph) {
  auto late = connect("late");
  late->set_deadline(std::chrono::milliseconds(300));
  const DeviceMemory data(2000);
  const TestStream stream;
  {
    Graph graph(stream.get(),
                [&] { late->all_reduce_sum(data.data(), 1000, DType::kBF16, stream.handle()); });
    g_host->barrier();
    if (g_host->rank() == 0) {
      graph.launch(stream.get());
      const double took = seconds_of([&] {
        expect_error(ErrorCode::kDeadlineExceeded, {"late", "waited 300 ms"},
                     [&] { late->wait(stream.handle()); });
      });
      EXPECT_LT(took, 3.0);
      must(cudaStreamSynchronize(stream.get()));  // its kernel has ended
    }
    g_host->barrier();
    late->abort("the test is over");
  }
  late.reset();
  connect("again")->barrier();
}

TEST_F(NcclFailure, GraphsThatOutliveTheirCommunicatorHangNobody) {
  auto ranks = connect("short");
  const DeviceMemory data(2000);
  const TestStream stream;
  Graph graph(stream.get(),
              [&] { ranks->all_reduce_sum(data.data(), 1000, DType::kBF16, stream.handle()); });
  graph.launch(stream.get());
  ranks->wait(stream.handle());
  EXPECT_LT(seconds_of([&] { ranks.reset(); }), 9.0);
}

// These need one GPU, however many ranks there are.
TEST(NcclStart, TwoRanksOnOneGpuAreRefused) {
  if (g_host->size() == 1) return;
  expect_error(ErrorCode::kInvalidArgument,
               {"crowd: rank 0 (GPU 0 of ", "rank 1 (GPU 0 of ", "would share one GPU"},
               [] { make_nccl_communicator(*g_host, 0, "crowd"); });
  g_host->barrier();
}

TEST(NcclStart, OneRankWithoutItsGpuIsRefusedOnAll) {
  const int last = g_host->size() - 1;
  expect_error(
      ErrorCode::kInvalidArgument, {fmt::format("start: rank {} on GPU 99", last), "no such GPU"},
      [&] { make_nccl_communicator(*g_host, g_host->rank() == last ? 99 : g_device, "start"); });
  g_host->barrier();
}

}  // namespace
}  // namespace trireme
