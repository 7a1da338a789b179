// How near the CPU kernels come to the machine's limits. One JSON object a line on stdout:
// {name, value, unit, baseline, ratio}, the baseline measured next to the value in the same run.
//
//   kernels_bench [--threads N] [--isa avx2|avx512|avx512-bf16|reference] [--quick]
//   [decode|prefill|attention|pool]…
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/limits.h"

namespace trireme {
namespace {

struct Options {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  CpuIsa isa = best_cpu_isa();
  bool quick = false;
  std::set<std::string> parts;
};

void report(const std::string& name, double value, const char* unit, double baseline) {
  std::printf(
      "{\"name\": \"%s\", \"value\": %.4g, \"unit\": \"%s\", \"baseline\": %.4g, "
      "\"ratio\": %.3f}\n",
      name.c_str(), value, unit, baseline, baseline > 0 ? value / baseline : 0.0);
  std::fflush(stdout);
}

double best_seconds(int repeats, const std::function<void()>& body) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

// Plausible blocks: random integers, scales of about 1.
std::vector<std::byte> random_row(QuantFormat format, int64_t cols) {
  std::vector<std::byte> row(static_cast<size_t>(row_bytes(format, cols)));
  uint32_t state = 1;
  for (std::byte& b : row) {
    b = static_cast<std::byte>((state = state * 1664525u + 1013904223u) >> 24);
    if (is_e4m3(format)) b &= std::byte{0xbf};  // no NaN
  }
  const auto step = static_cast<size_t>(traits(format).block_bytes);
  const uint16_t one = format == QuantFormat::kBF16 ? f32_to_bf16(1.0f) : f32_to_f16(1.0f);
  const float f32_one = 1.0f;
  for (size_t at = 0; at < row.size(); at += step) {
    const QuantTraits& t = traits(format);
    if (t.wide_scale) {
      std::memcpy(&row[at], &f32_one, 4);
      continue;
    }
    std::memcpy(&row[at + static_cast<size_t>(t.scale_at)], &one, 2);
    if (t.min_at >= 0) std::memcpy(&row[at + static_cast<size_t>(t.min_at)], &one, 2);
  }
  return row;
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), pool_(options.threads), backend_(make_cpu_backend(pool_, options.isa)) {}

  void run() {
    std::fprintf(stderr, "%s\n", backend_->description().c_str());
    if (wanted("pool")) pool();
    for (const QuantFormat format : kQuantFormats) {
      if (wanted("decode")) decode(format);
    }
    for (const QuantFormat format : kQuantFormats) {
      if (wanted("prefill")) prefill(format);
    }
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      if (wanted("attention")) attention(dtype);
    }
  }

 private:
  bool wanted(const std::string& part) const {
    return options_.parts.empty() || options_.parts.count(part) > 0;
  }

  void pool() {
    const auto empty = [](int) {};
    const std::function<void(int)> body = empty;
    constexpr int kLoops = 20000;
    const double seconds = best_seconds(5, [&] {
      for (int i = 0; i < kLoops; ++i) pool_.run(body);
    });
    report("fork_join", seconds / kLoops * 1e6, "us", 2.0);
    if (options_.threads > 1) report("fork_join_asleep", asleep(body), "us", wake());
  }

  static double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return values[values.size() / 2];
  }

  // run() once the threads have fallen asleep, in microseconds.
  double asleep(const std::function<void(int)>& body) {
    std::vector<double> times;
    for (int i = 0; i < 200; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      times.push_back(best_seconds(1, [&] { pool_.run(body); }) * 1e6);
    }
    return median(std::move(times));
  }

  // The machine's own: a thread that sleeps on a condition is woken and answers.
  static double wake() {
    std::mutex mutex;
    std::condition_variable changed;
    int asked = 0;
    std::atomic<int> answered = 0;
    std::thread other([&] {
      std::unique_lock lock(mutex);
      for (int i = 1; i <= 200; ++i) {
        changed.wait(lock, [&] { return asked >= i; });
        answered = i;
      }
    });
    std::vector<double> times;
    for (int i = 1; i <= 200; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      times.push_back(best_seconds(1,
                                   [&] {
                                     {
                                       const std::lock_guard lock(mutex);
                                       asked = i;
                                     }
                                     changed.notify_one();
                                     while (answered < i) {
                                     }
                                   }) *
                      1e6);
    }
    other.join();
    return median(std::move(times));
  }

  Weight weight(QuantFormat format, int64_t rows, int64_t cols) {
    const auto row = random_row(format, cols);
    return backend_->make_weight(
        {format, rows, cols, 0, cols, [&](int64_t, std::byte*) { return row.data(); }});
  }

  // Weights of at least 512 MB in all, so that none is in a cache when its turn comes.
  void decode(QuantFormat format) {
    constexpr int64_t kCols = 4096, kRows = 14336;
    const int64_t bytes = row_bytes(format, kCols) * kRows;
    std::vector<Weight> weights;
    for (int64_t total = 0; total < (int64_t{512} << 20); total += bytes) {
      weights.push_back(weight(format, kRows, kCols));
    }
    const double total = static_cast<double>(bytes) * static_cast<double>(weights.size());
    std::vector<float> x(8 * kCols, 0.5f), y(8 * kRows);
    for (const int m : {1, 2, 4, 8}) {
      const double limit = measure_read_bandwidth(pool_);
      const double seconds = best_seconds(options_.quick ? 2 : 5, [&] {
        for (const Weight& w : weights) {
          const LinearPart part{&w, nullptr, matrix_f32(y.data(), m, kRows), false};
          backend_->linear(matrix_f32(x.data(), m, kCols), {&part, 1});
        }
      });
      report(std::string("decode_linear/") + traits(format).name + "/" + std::to_string(m),
             total / seconds / 1e9, "GB/s", limit / 1e9);
    }
  }

  // Against the float32 multiply-add peak, whatever the format.
  void prefill(QuantFormat format) {
    const int64_t cols = 4096, rows = 4096;
    const Weight w = weight(format, rows, cols);
    for (const int64_t m : {16, 64, 512}) {
      std::vector<float> x(static_cast<size_t>(m * cols), 0.5f), y(static_cast<size_t>(m * rows));
      const double peak = measure_flops(pool_, options_.isa);
      const LinearPart part{&w, nullptr, matrix_f32(y.data(), m, rows), false};
      const double seconds = best_seconds(options_.quick ? 2 : 5, [&] {
        backend_->linear(matrix_f32(x.data(), m, cols), {&part, 1});
      });
      const auto operations = 2.0 * static_cast<double>(m * cols * rows);
      report(std::string("prefill_linear/") + traits(format).name + "/" + std::to_string(m),
             operations / seconds / 1e9, "GFLOP/s", peak / 1e9);
    }
  }

  // Decode: rows of long contexts, GQA 4:1, heads of 128; then one prompt of 1024 tokens.
  void attention(DType dtype) {
    constexpr int kKvHeads = 8, kGroup = 4, kDim = 128, kBlock = 16, kRows = 8;
    constexpr int kContext = 8192;
    constexpr int kBlocks = kRows * kContext / kBlock;
    const size_t bytes = size_t{kBlocks} * kKvHeads * kBlock * kDim * size_of(dtype);
    const Buffer k(bytes), v(bytes);
    std::memset(k.data(), 0, bytes);
    std::memset(v.data(), 0, bytes);
    const KvLayerView kv{k.data(), v.data(), dtype, kKvHeads, kDim, kBlock};
    std::vector<int32_t> blocks(kBlocks);
    for (int i = 0; i < kBlocks; ++i) blocks[static_cast<size_t>(i)] = i * 7919 % kBlocks;
    const int64_t cols = kKvHeads * kGroup * kDim;
    std::vector<float> q(static_cast<size_t>(1024 * cols), 0.1f), out(q.size());
    const AttentionParams params{kKvHeads * kGroup, 0.088f, 0, 0.0f};
    const std::string name = to_string(dtype);
    for (const int rows : {1, kRows}) {
      std::vector<AttentionRow> plan;
      for (int r = 0; r < rows; ++r) {
        plan.push_back({r, 1, kContext - 1, blocks.data() + r * (kContext / kBlock)});
      }
      const double limit = measure_read_bandwidth(pool_);
      const double seconds = best_seconds(options_.quick ? 3 : 8, [&] {
        backend_->paged_attention(matrix_f32(q.data(), rows, cols), params, plan, kv,
                                  matrix_f32(out.data(), rows, cols));
      });
      const double read =
          2.0 * rows * kContext * kKvHeads * kDim * static_cast<double>(size_of(dtype));
      report("decode_attention/" + name + "/" + std::to_string(rows), read / seconds / 1e9, "GB/s",
             limit / 1e9);
    }
    const AttentionRow prompt{0, 1024, 0, blocks.data()};
    const double peak = measure_flops(pool_, options_.isa);
    const double seconds = best_seconds(options_.quick ? 2 : 5, [&] {
      backend_->paged_attention(matrix_f32(q.data(), 1024, cols), params, {&prompt, 1}, kv,
                                matrix_f32(out.data(), 1024, cols));
    });
    const double operations = 4.0 * kKvHeads * kGroup * kDim * (1024.0 * 1025.0 / 2);
    report("prefill_attention/" + name, operations / seconds / 1e9, "GFLOP/s", peak / 1e9);
  }

  Options options_;
  ThreadPool pool_;
  std::unique_ptr<Backend> backend_;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--quick") {
      options.quick = true;
    } else if (arg == "--threads" && i + 1 < argc) {
      options.threads = std::atoi(argv[++i]);
    } else if (arg == "--isa" && i + 1 < argc) {
      setenv("TRIREME_CPU_ISA", argv[++i], 1);
      options.isa = best_cpu_isa();
    } else if (arg == "decode" || arg == "prefill" || arg == "attention" || arg == "pool") {
      options.parts.insert(arg);
    } else {
      fail(ErrorCode::kInvalidArgument, "unknown argument '{}'", arg);
    }
  }
  return options;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  try {
    trireme::Bench(trireme::parse(argc, argv)).run();
  } catch (const trireme::Error& error) {
    std::fprintf(stderr, "kernels_bench: %s\n", error.what());
    return trireme::exit_code(error.code());
  }
  return 0;
}
