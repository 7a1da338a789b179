// What a small sum over tensor ranks costs on GPUs, one GPU a rank, as part of a recorded graph:
// our kernels beside NCCL in plain memory and in memory that all ranks map, and the sum with the
// addition and the norm that follow it in a layer beside the same as two kernels.
//   launch/mpirun -n 2 build/release/bench/sums_bench [WIDTH]
// One JSON line per figure: {name, value, unit, baseline, ratio}; ratio is baseline / value, above
// 1 is faster. The baseline is named.
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/cuda_module.h"
#include "parallel/device_communicator.h"
#include "parallel/world.h"

namespace trireme {
namespace {

constexpr int kTimes = 50;  // in one graph

struct Bench {
  Communicator& host;
  DeviceCommunicator& nccl;
  Backend& backend;
  PeerSums& sums;
  int64_t width;

  // Microseconds of the slowest rank; the least of three rounds.
  double us(const std::function<void()>& work) {
    double best = 1e30;
    for (int round = 0; round < 3; ++round) {
      host.barrier();
      best = std::min(best, largest_of_ranks(host, backend.measure(work, kTimes) * 1e6));
    }
    return best;
  }

  void report(const std::string& name, double value, const char* baseline, double base) {
    if (host.rank() != 0) return;
    fmt::print(
        "{{\"name\":\"{}, {} GPUs\",\"value\":{:.2f},\"unit\":\"us\",\"baseline\":\"{} {:.2f} us\","
        "\"ratio\":{:.3f}}}\n",
        name, host.size(), value, baseline, base, base / value);
    std::fflush(stdout);
  }
};

void run_sizes(Bench& bench) {
  constexpr int64_t kMostRows = 128;
  const auto bytes = static_cast<size_t>(kMostRows * bench.width * 2);
  Backend& b = bench.backend;
  const Buffer delta = b.allocate(bytes), out = b.allocate(bytes);
  const Buffer residual = b.allocate(bytes * 2);
  const Buffer mapped = bench.nccl.allocate_symmetric(bytes);
  const Buffer weight = b.upload(std::vector<float>(static_cast<size_t>(bench.width), 1.0f));
  const auto view = [&](const Buffer& buffer, DType dtype, int64_t rows) {
    return MatrixView{buffer.data(), dtype, rows, bench.width, bench.width};
  };
  b.fill_bytes(view(delta, DType::kBF16, kMostRows), 0x3c);  // 0.0115 each
  b.fill_bytes(view(residual, DType::kF32, kMostRows), 0x3c);
  for (int64_t rows = 1; rows <= kMostRows; rows *= 2) {
    const MatrixView terms = view(delta, DType::kBF16, rows);
    const MatrixView stream = view(residual, DType::kF32, rows);
    const MatrixView normed = view(out, DType::kBF16, rows);
    if (!bench.sums.takes(rows, bench.width, DType::kBF16)) continue;
    const auto through_nccl = [&](std::byte* data) {
      bench.nccl.all_reduce_sum(data, rows * bench.width, DType::kBF16, {b.stream()});
    };
    const double plain = bench.us([&] { through_nccl(delta.data()); });
    const double windows = bench.us([&] { through_nccl(mapped.data()); });
    double ours = 1e30;
    std::string way;
    for (const PeerShots shots : {PeerShots::kOne, PeerShots::kTwo}) {
      for (const int blocks : {0, 8, 16, 32, 64, 128}) {
        const double us = bench.us([&] { bench.sums.sum(terms, shots, blocks); });
        if (us >= ours) continue;
        ours = us;
        way = fmt::format("{} shot{}, {} blocks", static_cast<int>(shots),
                          shots == PeerShots::kTwo ? "s" : "", blocks);
      }
    }
    const auto size = fmt::format("all-reduce bf16 {} bytes", rows * bench.width * 2);
    bench.report(fmt::format("{} ({})", size, way), ours, "NCCL", plain);
    bench.report(size, ours, "NCCL symmetric memory", windows);
    const auto add = [&] { b.add_rms_norm(stream, terms, weight.as<float>(), 1e-5f, normed); };
    double fused = 1e30;
    for (const PeerShots shots : {PeerShots::kOne, PeerShots::kTwo}) {
      fused = std::min(fused, bench.us([&] {
        bench.sums.add_rms_norm(stream, terms, weight.as<float>(), 1e-5f, normed, shots);
      }));
    }
    const double pair = bench.us([&] {
      bench.sums.sum(terms, PeerShots::kOne, 0);
      add();
    });
    const double nccl_pair = bench.us([&] {
      through_nccl(delta.data());
      add();
    });
    const auto name = fmt::format("sum, add and norm of {} bytes", rows * bench.width * 2);
    bench.report(name, fused, "our sum, then add and norm", pair);
    bench.report(name, fused, "NCCL's sum, then add and norm", nccl_pair);
  }
}

int run(int argc, char** argv) {
  MpiEnvironment environment(&argc, &argv);
  auto host = environment.make_control();
  ThreadPool pool(1);
  auto backend = make_cuda_backend(pool, environment.local_rank());
  auto nccl = make_nccl_communicator(*host, environment.local_rank(), "bench");
  nccl->set_deadline(std::chrono::seconds(20));
  const int64_t width = argc > 1 ? std::atoll(argv[1]) : 4096;
  std::string why;
  auto memory = nccl->map_peers(*host, backend->peer_bytes(host->size(), width), why);
  if (!memory) fail(ErrorCode::kUnavailable, "no peer memory: {}", why);
  auto sums = backend->make_peer_sums(std::move(*memory), width);
  Bench bench{*host, *nccl, *backend, *sums, width};
  run_sizes(bench);
  host->barrier();
  return 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  try {
    return trireme::run(argc, argv);
  } catch (const trireme::Error& error) {
    std::fprintf(stderr, "sums_bench: %s\n", error.what());
    trireme::MpiEnvironment::abort(trireme::exit_code(error.code()));
  }
}
