// What the communicators cost, beside what MPI itself takes for the same in the same run.
//   launch/mpirun -n 2 build/release/bench/parallel_bench
// One JSON line per figure: {name, value, unit, baseline, ratio}; ratio = value / baseline, below 1
// where this project is faster.
#include <fmt/core.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include "parallel/mpi_communicator.h"
#include "parallel/world.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;

double now_us() {
  return std::chrono::duration<double, std::micro>(Clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// Microseconds per call of the slowest rank, the same numbers on every rank: the best of several
// batches, taken in turns, so that a busy host disturbs both alike.
struct Times {
  double ours, raw;
};
Times time_us(int calls, const std::function<void()>& ours, const std::function<void()>& raw) {
  Times best{1e30, 1e30};
  for (int batch = 0; batch < 20; ++batch) {
    for (const auto& [call, result] : {std::pair(&ours, &best.ours), std::pair(&raw, &best.raw)}) {
      MPI_Barrier(MPI_COMM_WORLD);
      const double start = now_us();
      for (int i = 0; i < calls; ++i) (*call)();
      double mine = (now_us() - start) / calls, slowest = 0;
      MPI_Allreduce(&mine, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
      *result = std::min(*result, slowest);
    }
  }
  return best;
}

void report(int rank, const std::string& name, double value, double baseline) {
  if (rank != 0) return;
  fmt::print(
      "{{\"name\":\"{}\",\"value\":{:.3f},\"unit\":\"us\",\"baseline\":{:.3f},"
      "\"ratio\":{:.3f}}}\n",
      name, value, baseline, value / baseline);
  std::fflush(stdout);
}

int calls_for(size_t bytes) { return bytes < 100'000 ? 200 : bytes < 2'000'000 ? 20 : 4; }

// 2304 bytes: one token of SmolLM2's hidden size 576; 32 tokens; a prefill chunk of 512.
void bench_all_reduce(Communicator& ranks, const char* how) {
  for (const size_t bytes : {4, 256, 2304, 16'384, 73'728, 1'179'648, 8'388'608}) {
    std::vector<float> data(bytes / sizeof(float), 0.0f);
    const int calls = calls_for(bytes);
    const auto ours = [&] { ranks.all_reduce_sum(data); };
    const auto raw = [&] {
      MPI_Allreduce(MPI_IN_PLACE, data.data(), static_cast<int>(data.size()), MPI_FLOAT, MPI_SUM,
                    MPI_COMM_WORLD);
    };
    const Times times = time_us(calls, ours, raw);
    report(ranks.rank(), fmt::format("all_reduce_{}_{}_ranks_{}_bytes", how, ranks.size(), bytes),
           times.ours, times.raw);
  }
}

// Half a round trip between ranks 0 and 1, as between two stages.
void bench_messages(Communicator& ranks) {
  for (const size_t bytes : {2304, 73'728, 1'179'648}) {
    std::vector<std::byte> data(bytes);
    const int count = static_cast<int>(bytes), me = ranks.rank();
    const auto ours = [&] {
      if (me == 0) ranks.send(data, 1, 1);
      if (me <= 1) ranks.recv(data, 1 - me, 1);
      if (me == 1) ranks.send(data, 0, 1);
    };
    const auto raw = [&] {
      if (me == 0) MPI_Send(data.data(), count, MPI_BYTE, 1, 1, MPI_COMM_WORLD);
      if (me <= 1) {
        MPI_Recv(data.data(), count, MPI_BYTE, 1 - me, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      }
      if (me == 1) MPI_Send(data.data(), count, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
    };
    const Times times = time_us(calls_for(bytes) / 2, ours, raw);
    report(me, fmt::format("send_recv_{}_bytes", bytes), times.ours / 2, times.raw / 2);
  }
}

// The receiver is ready; the sender sends and then computes for 5 ms, touching no MPI. How long
// until the bytes are there? The baseline is the same with MPI_Isend.
void bench_overlap(Communicator& ranks) {
  const auto compute = [](double until) {
    while (now_us() < until) {
    }
  };
  for (const size_t bytes : {2304, 73'728, 1'179'648}) {
    std::vector<std::byte> data(bytes);
    const int count = static_cast<int>(bytes), me = ranks.rank();
    std::vector<double> results[2];
    for (int round = 0; round < 20; ++round) {
      for (const bool ours : {true, false}) {
        MPI_Barrier(MPI_COMM_WORLD);
        double start = now_us() + 1000;
        MPI_Bcast(&start, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
        MPI_Request request = MPI_REQUEST_NULL;
        if (me == 0) {
          compute(start);
          if (ours) ranks.send(data, 1, 1);
          if (!ours) MPI_Isend(data.data(), count, MPI_BYTE, 1, 1, MPI_COMM_WORLD, &request);
          compute(start + 5000);
          MPI_Wait(&request, MPI_STATUS_IGNORE);
        } else if (me == 1) {
          if (ours) ranks.recv(data, 0, 1);
          if (!ours)
            MPI_Recv(data.data(), count, MPI_BYTE, 0, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        }
        double took = now_us() - start;
        MPI_Bcast(&took, 1, MPI_DOUBLE, 1, MPI_COMM_WORLD);
        results[ours ? 0 : 1].push_back(took);
      }
    }
    report(me, fmt::format("arrival_while_sender_computes_{}_bytes", bytes), median(results[0]),
           median(results[1]));
  }
}

// From ring() to the return of sleep(); the baseline is the millisecond the product promises.
void bench_doorbell(Communicator& ranks) {
  auto doorbell = make_doorbell(ranks);
  std::vector<double> wakes;
  for (int round = 0; round < 100; ++round) {
    ranks.barrier();
    double rung = 0;
    if (ranks.rank() == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      rung = now_us();
      doorbell->ring();
    } else {
      doorbell->sleep();
    }
    const double awake = now_us();
    ranks.broadcast(std::as_writable_bytes(std::span(&rung, 1)), 0);
    double latency = awake - rung, slowest = 0;  // one host, one clock
    MPI_Allreduce(&latency, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    wakes.push_back(slowest);
  }
  report(ranks.rank(), "doorbell_wake_median", median(wakes), 1000);
  report(ranks.rank(), "doorbell_wake_slowest_of_100",
         *std::max_element(wakes.begin(), wakes.end()), 1000);
}

int run(int argc, char** argv) {
  MpiEnvironment environment(&argc, &argv);
  if (environment.size() < 2) {
    fmt::print(stderr, "parallel_bench: start it with launch/mpirun -n 2 (or more)\n");
    return 2;
  }
  auto ranks = environment.make_control();
  bench_all_reduce(*ranks, "shared_memory");
  auto process = std::make_shared<MpiProcess>(environment.local_size() > 2 * usable_cores());
  auto messages = make_mpi_communicator(MPI_COMM_WORLD, "messages", process, false);
  bench_all_reduce(*messages, "messages");
  bench_messages(*ranks);
  bench_overlap(*ranks);
  bench_doorbell(*ranks);
  return 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) { return trireme::run(argc, argv); }
