// What sums and messages between GPUs cost, one GPU a rank.
//   launch/mpirun -n 2 build/release/bench/nccl_bench
// One JSON line per figure: {name, value, unit, baseline, ratio}. The baseline of an all-reduce in
// symmetric memory is the same in plain memory; that of a message is a copy between the same two
// GPUs by their copy engines.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "base/error.h"
#include "parallel/device_communicator.h"
#include "parallel/world.h"
#include "tests/dist/device_memory.h"

namespace trireme {
namespace {

constexpr int kCalls = 50;  // in one graph, or between two events

void report(int rank, const std::string& name, double value, const char* unit, double baseline) {
  if (rank != 0) return;
  fmt::print(
      "{{\"name\":\"{}\",\"value\":{:.3f},\"unit\":\"{}\",\"baseline\":{:.3f},\"ratio\":{:.3f}}}\n",
      name, value, unit, baseline, value / baseline);
  std::fflush(stdout);
}

class Event {
 public:
  Event() { must(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

struct Bench {
  Communicator& host;
  DeviceCommunicator& ranks;
  TestStream stream;
  Event begin, end;

  // Microseconds on the device of one of the kCalls calls that `work` makes; the best of several.
  double device_us(const std::function<void()>& work) {
    double best = 1e30;
    for (int batch = 0; batch < 7; ++batch) {
      host.barrier();
      must(cudaEventRecord(begin.get(), stream.get()));
      work();
      must(cudaEventRecord(end.get(), stream.get()));
      ranks.wait(stream.handle());
      float ms = 0;
      must(cudaEventElapsedTime(&ms, begin.get(), end.get()));
      best = std::min(best, largest_of_ranks(host, 1000.0 * ms / kCalls));
    }
    return best;
  }

  double graph_us(const std::function<void()>& call) {
    must(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kCalls; ++i) call();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    must(cudaStreamEndCapture(stream.get(), &graph));
    must(cudaGraphInstantiate(&replay, graph, 0));
    const double us = device_us([&] { must(cudaGraphLaunch(replay, stream.get())); });
    must(cudaGraphExecDestroy(replay));
    must(cudaGraphDestroy(graph));
    return us;
  }

  // What the host takes to queue one.
  double queue_us(const std::function<void()>& call) {
    using Clock = std::chrono::steady_clock;
    double best = 1e30;
    for (int batch = 0; batch < 5; ++batch) {
      host.barrier();
      const auto start = Clock::now();
      for (int i = 0; i < kCalls; ++i) call();
      const double us =
          std::chrono::duration<double, std::micro>(Clock::now() - start).count() / kCalls;
      ranks.wait(stream.handle());
      best = std::min(best, largest_of_ranks(host, us));
    }
    return best;
  }
};

void bench_all_reduce(Bench& bench) {
  const size_t most = 16 << 20;
  const DeviceMemory plain(most);
  must(cudaMemset(plain.data(), 0, most));
  const Buffer symmetric = bench.ranks.allocate_symmetric(most);
  const int gpus = bench.ranks.size();
  for (size_t bytes = 8192; bytes <= most; bytes *= 4) {
    const auto sum = [&](std::byte* data) {
      bench.ranks.all_reduce_sum(data, static_cast<int64_t>(bytes / 2), DType::kBF16,
                                 bench.stream.handle());
    };
    const double base = bench.graph_us([&] { sum(plain.data()); });
    const double mapped = bench.graph_us([&] { sum(symmetric.data()); });
    const auto name = fmt::format("all_reduce bf16 {} bytes, {} GPUs, in a graph", bytes, gpus);
    report(bench.ranks.rank(), name + ", symmetric memory", mapped, "us", base);
    if (bytes > 8192) continue;
    const double queued = bench.queue_us([&] { sum(plain.data()); });
    report(bench.ranks.rank(), "host time to queue one all_reduce", queued, "us", base);
    const double queued_symmetric = bench.queue_us([&] { sum(symmetric.data()); });
    report(bench.ranks.rank(), "host time to queue one all_reduce, symmetric memory",
           queued_symmetric, "us", mapped);
  }
}

// Microseconds of a copy from this rank's GPU to another by the copy engines; 0 if it sees no
// other.
double copy_us(Bench& bench, const std::byte* data, size_t bytes) {
  int visible = 0;
  must(cudaGetDeviceCount(&visible));
  if (visible < 2) return 0.0;
  void* peer = nullptr;
  must(cudaSetDevice(1));
  must(cudaMalloc(&peer, bytes));
  must(cudaSetDevice(0));
  const cudaError_t enabled = cudaDeviceEnablePeerAccess(1, 0);
  if (enabled == cudaErrorPeerAccessAlreadyEnabled) cudaGetLastError();
  float ms = 0;
  for (int batch = 0; batch < 2; ++batch) {
    must(cudaEventRecord(bench.begin.get(), bench.stream.get()));
    for (int i = 0; i < kCalls; ++i) {
      must(cudaMemcpyPeerAsync(peer, 1, data, 0, bytes, bench.stream.get()));
    }
    must(cudaEventRecord(bench.end.get(), bench.stream.get()));
    must(cudaStreamSynchronize(bench.stream.get()));
    must(cudaEventElapsedTime(&ms, bench.begin.get(), bench.end.get()));
  }
  must(cudaFree(peer));
  return 1000.0 * ms / kCalls;
}

// From rank 0 to rank 1, as between two stages.
void bench_messages(Bench& bench) {
  const size_t most = 16 << 20;
  const DeviceMemory data(most);
  const int me = bench.ranks.rank();
  for (size_t bytes = 8192; bytes <= most; bytes *= 8) {
    const double us = bench.device_us([&] {
      for (int i = 0; i < kCalls; ++i) {
        if (me == 0) bench.ranks.send({data.data(), bytes}, 1, 0, bench.stream.handle());
        if (me == 1) bench.ranks.recv({data.data(), bytes}, 0, 0, bench.stream.handle());
      }
    });
    const double copy = me == 0 ? copy_us(bench, data.data(), bytes) : 0.0;
    report(me, fmt::format("send and receive {} bytes", bytes), us, "us", copy);
  }
}

int run(int argc, char** argv) {
  MpiEnvironment environment(&argc, &argv);
  auto host = environment.make_control();
  must(cudaSetDevice(environment.local_rank()));
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  auto ranks = make_nccl_communicator(*host, environment.local_rank(), "bench");
  const double took = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  if (host->rank() == 0) fmt::print(stderr, "connected {} GPUs in {:.0f} ms\n", host->size(), took);
  ranks->set_deadline(std::chrono::seconds(10));
  Bench bench{*host, *ranks, {}, {}, {}};
  bench_all_reduce(bench);
  if (host->size() > 1) bench_messages(bench);
  host->barrier();
  return 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  try {
    return trireme::run(argc, argv);
  } catch (const trireme::Error& error) {
    std::fprintf(stderr, "nccl_bench: %s\n", error.what());
    trireme::MpiEnvironment::abort(trireme::exit_code(error.code()));
  }
}
