#include "kernels/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "kernels/cpu/isa.h"

namespace trireme {
namespace {

double seconds_of(ThreadPool& pool, const std::function<void(int)>& body) {
  const auto begin = std::chrono::steady_clock::now();
  pool.run(body);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

double measure_read_bandwidth(ThreadPool& pool) {
  constexpr int64_t kBytes = int64_t{512} << 20;
  constexpr int kPasses = 5;
  const Buffer buffer(kBytes);
  const cpu::Ops& ops = cpu::ops_of(best_cpu_isa());
  const auto range_of = [&](int thread) { return split_range(kBytes, thread, pool.size(), 4096); };
  pool.run([&](int thread) {
    const Range range = range_of(thread);
    std::memset(buffer.data() + range.begin, 1, static_cast<size_t>(range.end - range.begin));
  });
  std::atomic<uint64_t> sink{0};
  double best = 1e30;
  for (int pass = 0; pass < kPasses; ++pass) {
    best = std::min(best, seconds_of(pool, [&](int thread) {
                      const Range range = range_of(thread);
                      sink += ops.read(buffer.data() + range.begin, range.end - range.begin);
                    }));
  }
  return static_cast<double>(kBytes) / best;
}

double measure_flops(ThreadPool& pool, CpuIsa isa, QuantFormat weights) {
  constexpr int kPasses = 5;
  const cpu::Ops& ops = cpu::ops_of(isa);
  const cpu::TileKind tile = ops.linear(weights).tile;
  std::atomic<int64_t> operations{0};
  double best = 0;
  for (int pass = 0; pass <= kPasses; ++pass) {  // the first one warms up
    operations = 0;
    const double seconds = seconds_of(pool, [&](int /*thread*/) {
      operations += static_cast<int64_t>(ops.flops(1000000, tile));
    });
    if (pass > 0) best = std::max(best, static_cast<double>(operations.load()) / seconds);
  }
  return best;
}

}  // namespace trireme
