// A step's sampling on a GPU as the worker does it, from logits that are there to tokens on the
// host, against reading the logits once at the read bandwidth measured in the run; and what the
// same takes by copying the logits to the host. One JSON object a line.
//   sampling_bench [VOCAB=128256]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cuda_module.h"
#include "runtime/sampler.h"

namespace trireme {
namespace {

double median_us(int calls, const std::function<void()>& work) {
  std::vector<double> times;
  for (int i = -2; i < calls; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    if (i >= 0) times.push_back(took.count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

struct Shape {
  std::string name;
  SamplingParams params;
};

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  const auto add = [&](const std::string& name, const std::function<void(SamplingParams&)>& set) {
    Shape shape{name, {}};
    set(shape.params);
    all.push_back(std::move(shape));
  };
  add("greedy", [](SamplingParams& p) { p.temperature = 0.0f; });
  add("temperature", [](SamplingParams& p) { p.temperature = 0.8f; });
  add("top_k", [](SamplingParams& p) { p.top_k = 40; });
  add("top_p_min_p", [](SamplingParams& p) { p.top_p = 0.9f, p.min_p = 0.02f; });
  add("wide_top_p", [](SamplingParams& p) { p.top_p = 0.9f, p.temperature = 1.5f; });
  add("narrow_top_p", [](SamplingParams& p) { p.top_p = 0.9f, p.temperature = 0.4f; });
  add("penalties", [](SamplingParams& p) {
    p.temperature = 0.8f;
    p.repetition_penalty = 1.1f;
    p.frequency_penalty = 0.2f;
  });
  add("logprobs", [](SamplingParams& p) { p.temperature = 0.0f, p.logprobs = 5; });
  return all;
}

void report(const std::string& name, double us, double limit) {
  std::printf(
      "{\"name\": \"%s\", \"value\": %.1f, \"unit\": \"us\", \"baseline\": %.1f, \"ratio\": "
      "%.2f}\n",
      name.c_str(), us, limit, us / limit);
  std::fflush(stdout);
}

int run(int64_t vocab) {
  if (cuda_device_count() == 0) {
    std::printf("skipped: %s\n", cuda_unavailable().c_str());
    return 77;
  }
  ThreadPool pool(1);
  const auto backend = make_cuda_backend(pool, 0);
  const double bandwidth = backend->measure_limits(QuantFormat::kBF16).read_bandwidth;
  constexpr int64_t kMostRows = 256;
  // Random from an offset of one long list: enough for the GPU, whatever repeats.
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> values(static_cast<size_t>(kMostRows * vocab));
  const size_t distinct = static_cast<size_t>(vocab) * 8 + 12345;
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = i < distinct ? normal(random) : values[i - distinct];
  }
  const Buffer device = backend->upload(values);
  const auto tp = make_single_communicator();
  Sampler sampler(*tp, {0, vocab}, vocab, backend->make_logit_rows(1));
  Sampler on_host(*tp, {0, vocab}, vocab);
  TokenCounts counts;
  for (int i = 0; i < 800; ++i) counts.add(static_cast<int32_t>(random() % 60000), i > 400);
  std::vector<Sampled> out;
  for (const Shape& shape : shapes()) {
    for (const int64_t rows : {int64_t{1}, int64_t{64}, kMostRows}) {
      std::vector<SamplingParams> params(static_cast<size_t>(rows), shape.params);
      std::vector<SampleRow> wanted;
      for (SamplingParams& one : params) {
        one.seed = random();
        SampleRow row;
        row.params = &one;
        row.counts = &counts;
        wanted.push_back(row);
      }
      const MatrixView logits = matrix_f32(reinterpret_cast<float*>(device.data()), rows, vocab);
      const double limit = static_cast<double>(rows * vocab) * 4 / bandwidth * 1e6;
      const std::string name = "sampling_" + shape.name + "_rows" + std::to_string(rows);
      report(name, median_us(20, [&] { sampler.sample(logits, wanted, out); }), limit);
      if (rows == kMostRows) continue;  // a second a call
      report(name + "_by_host",
             median_us(2, [&] { on_host.sample(backend->read_back(logits), wanted, out); }), limit);
    }
  }
  return 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) { return trireme::run(argc > 1 ? std::atoll(argv[1]) : 128256); }
