// What the communicators cost, beside what MPI itself takes for the same in the same run.
//   launch/mpirun -n 2 build/release/bench/parallel_bench [doorbell]
// One JSON line per figure: {name, value, unit, baseline, ratio}; ratio = value / baseline, below 1
// where this project is faster.
#include <fmt/core.h>
#include <mpi.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <string_view>
#include <thread>

#include "parallel/mpi_communicator.h"
#include "parallel/socket.h"
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

void report(int rank, const std::string& name, double value, double baseline,
            const char* unit = "us") {
  if (rank != 0) return;
  const std::string ratio = baseline > 0 ? fmt::format("{:.3f}", value / baseline) : "null";
  fmt::print(
      "{{\"name\":\"{}\",\"value\":{:.3f},\"unit\":\"{}\",\"baseline\":{:.3f},"
      "\"ratio\":{}}}\n",
      name, value, unit, baseline, ratio);
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

// One loopback connection from rank 0 to each other rank, for the machine's own wake.
std::vector<Socket> connect_plain(Communicator& ranks) {
  uint16_t port = 0;
  Socket listener;
  if (ranks.rank() == 0) listener = listen_tcp(true, ranks.size(), port);
  ranks.broadcast(std::as_writable_bytes(std::span(&port, 1)), 0);
  const auto until = Clock::now() + std::chrono::seconds(10);
  std::vector<Socket> sockets;
  if (ranks.rank() == 0) {
    for (int i = 1; i < ranks.size(); ++i) sockets.push_back(accept_tcp(listener, until));
  } else {
    std::string problem;
    sockets.push_back(connect_tcp("127.0.0.1", port, until, problem));
  }
  return sockets;
}

constexpr auto kIdle = std::chrono::milliseconds(3);
constexpr double kComputes = 2000;  // microseconds for which rank 0 does not let go of its core
constexpr std::byte kBell{1};

// One thread of this process wakes another and then blocks itself: the least the machine can do.
class ThreadWake {
 public:
  ThreadWake() : bell_(eventfd(0, EFD_CLOEXEC)), answer_(eventfd(0, EFD_CLOEXEC)) {
    sleeper_ = std::thread([this] {
      while (!ends_) {
        take(bell_);
        awake_ = now_us();
        eventfd_write(answer_.fd(), 1);
      }
    });
  }
  ~ThreadWake() {
    ends_ = true;
    eventfd_write(bell_.fd(), 1);
    sleeper_.join();
  }
  double measure() {
    const double rung = now_us();
    eventfd_write(bell_.fd(), 1);
    take(answer_);
    return awake_ - rung;
  }

 private:
  static void take(const Socket& counter) {
    eventfd_t value = 0;
    while (eventfd_read(counter.fd(), &value) != 0) {
    }
  }
  Socket bell_, answer_;
  std::atomic<bool> ends_{false};
  double awake_ = 0;
  std::thread sleeper_;
};

// Rank 0 passes when it rang; the others when they awoke. The slowest wake, on every rank (one
// host, one clock).
double slowest_wake(Communicator& ranks, double moment) {
  double rung = moment;
  ranks.broadcast(std::as_writable_bytes(std::span(&rung, 1)), 0);
  double latency = ranks.rank() == 0 ? 0 : moment - rung, slowest = 0;
  MPI_Allreduce(&latency, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return slowest;
}

// The machine's own: a byte over loopback to ranks that block, from a rank 0 that then blocks too.
double wake_plainly(Communicator& ranks, const std::vector<Socket>& sockets) {
  std::byte byte{};
  if (ranks.rank() == 0) {
    std::this_thread::sleep_for(kIdle);
    const double rung = now_us();
    for (const Socket& socket : sockets) write_all(socket, std::span(&kBell, 1), Clock::now());
    for (const Socket& socket : sockets) read_forever(socket, byte);
    return slowest_wake(ranks, rung);
  }
  read_forever(sockets[0], byte);
  const double awake = now_us();
  write_all(sockets[0], std::span(&kBell, 1), Clock::now());
  return slowest_wake(ranks, awake);
}

// Ours: rank 0 rings and computes at once, as the engine does.
double wake_by_doorbell(Communicator& ranks, Doorbell& doorbell, double& ring_us) {
  if (ranks.rank() != 0) {
    doorbell.sleep();
    return slowest_wake(ranks, now_us());
  }
  std::this_thread::sleep_for(kIdle);
  const double rung = now_us();
  doorbell.ring();
  const double back = now_us();
  ring_us = back - rung;
  while (now_us() < back + kComputes) {
  }
  return slowest_wake(ranks, rung);
}

double quantile(std::vector<double>& values, double part) {
  std::sort(values.begin(), values.end());
  const auto index = static_cast<size_t>(part * static_cast<double>(values.size()));
  return values[std::min(values.size() - 1, index)];
}

// How long until a sleeping rank runs, in turns with what the machine itself takes, so that a busy
// host disturbs both alike. `ring` is how long rank 0 is held up.
void bench_doorbell(Communicator& ranks) {
  constexpr int kRounds = 600;
  auto doorbell = make_doorbell(ranks);
  const auto sockets = connect_plain(ranks);
  std::unique_ptr<ThreadWake> pair;
  if (ranks.rank() == 0) pair = std::make_unique<ThreadWake>();
  std::vector<double> ours, ring, plain, thread;
  for (int round = 0; round < kRounds; ++round) {
    if (pair) {  // the other ranks sleep in wake_plainly() meanwhile
      std::this_thread::sleep_for(kIdle);
      thread.push_back(pair->measure());
    }
    plain.push_back(wake_plainly(ranks, sockets));
    double ring_us = 0;
    ours.push_back(wake_by_doorbell(ranks, *doorbell, ring_us));
    ring.push_back(ring_us);
  }
  if (!pair) return;
  for (const auto& [name, part] :
       {std::pair("p50", 0.5), {"p90", 0.9}, {"p99", 0.99}, {"max", 1.0}}) {
    report(0, fmt::format("doorbell_wake_{}", name), quantile(ours, part), quantile(plain, part));
    report(0, fmt::format("doorbell_ring_{}", name), quantile(ring, part), quantile(plain, part));
    report(0, fmt::format("thread_wake_{}", name), quantile(thread, part), quantile(plain, part));
  }
  const auto late = [](const std::vector<double>& wakes) {
    const auto count =
        std::count_if(wakes.begin(), wakes.end(), [](double us) { return us > 1000; });
    return 100.0 * static_cast<double>(count) / kRounds;
  };
  report(0, "doorbell_wakes_over_1ms", late(ours), late(plain), "%");
}

int run(int argc, char** argv) {
  MpiEnvironment environment(&argc, &argv);
  if (environment.size() < 2) {
    fmt::print(stderr, "parallel_bench: start it with launch/mpirun -n 2 (or more)\n");
    return 2;
  }
  auto ranks = environment.make_control();
  if (argc > 1 && std::string_view(argv[1]) == "doorbell") {
    bench_doorbell(*ranks);
    return 0;
  }
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
