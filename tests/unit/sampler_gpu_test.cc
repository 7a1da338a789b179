// The sampler's tests with logits on a GPU, and the GPU's answers against the host's, bit for bit,
// on fresh random logits (TRIREME_TEST_SEED repeats a run). Skipped (exit 77) without a GPU.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "base/thread_pool.h"
#include "kernels/cuda_module.h"
#include "tests/unit/sampler_cases.h"

namespace trireme {

namespace {

// Each rank with a backend (and stream) of its own.
class GpuPlace final : public LogitPlace {
 public:
  explicit GpuPlace(ThreadPool& pool) : backend_(make_cuda_backend(pool, 0)) {}
  std::unique_ptr<LogitRows> rows() override { return backend_->make_logit_rows(); }
  MatrixView put(std::vector<float>& values, int64_t rows, int64_t cols) override {
    values_ = backend_->upload(values);
    return matrix_f32(reinterpret_cast<float*>(values_.data()), rows, cols);
  }

 private:
  std::unique_ptr<Backend> backend_;
  Buffer values_;
};

}  // namespace

LogitPlace& logit_place(size_t rank) {
  static std::mutex mutex;
  static ThreadPool pool(1);
  static std::map<size_t, std::unique_ptr<GpuPlace>> places;
  const std::lock_guard lock(mutex);
  auto& place = places[rank];
  if (place == nullptr) place = std::make_unique<GpuPlace>(pool);
  return *place;
}

namespace {

uint64_t fresh_seed() {
  static const uint64_t seed = [] {
    const char* given = std::getenv("TRIREME_TEST_SEED");
    const uint64_t value = given != nullptr ? std::stoull(given) : std::random_device{}();
    std::printf("TRIREME_TEST_SEED=%llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

std::vector<Sampled> sample_on_host(const std::vector<Case>& cases) {
  auto single = make_single_communicator();
  LogitPlace host;
  return sample_on(*single, {0, static_cast<int64_t>(cases.front().logits.size())}, cases, host);
}

std::string describe(const Sampled& sampled) {
  std::string text = std::to_string(sampled.token) + " " + std::to_string(sampled.logprob) + " [";
  for (const TokenLogprob& one : sampled.top) {
    text += std::to_string(one.token) + ":" + std::to_string(one.logprob) + " ";
  }
  return text + "]";
}

void expect_as_on_host(const std::vector<Case>& cases, int ranks = 1) {
  const auto host = sample_on_host(cases);
  const auto gpu = ranks == 1 ? sample_whole(cases) : sample_split(cases, ranks);
  for (size_t i = 0; i < cases.size(); ++i) {
    EXPECT_TRUE(equal(host[i], gpu[i]) && host[i].top.size() == gpu[i].top.size())
        << "case " << i << " on " << ranks << " ranks, vocabulary of " << cases[i].logits.size()
        << ": host " << describe(host[i]) << ", GPU " << describe(gpu[i]);
  }
}

// NaN, infinities and ties among the logits.
void spoil(std::vector<float>& logits, uint64_t seed) {
  std::mt19937_64 random(seed);
  const float values[] = {std::numeric_limits<float>::quiet_NaN(),
                          -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::infinity(),
                          0.0f,
                          -0.0f,
                          3.5f};
  const size_t kinds = random() % 3 == 0 ? 6 : 2;  // +inf rarely, or it is all that is chosen
  for (size_t i = 0; i < logits.size() / 7; ++i) {
    logits[random() % logits.size()] = values[random() % kinds];
  }
}

TEST(SamplerGpu, AsOnTheHost) {
  uint64_t seed = fresh_seed();
  for (const int vocab : {1, 259, 1511, 4096, 16384, 50257}) {
    std::vector<Case> cases;
    for (int i = 0; i < 60; ++i) {
      cases.push_back(random_case(++seed, vocab));
      if (i % 3 == 0) spoil(cases.back().logits, seed);
    }
    expect_as_on_host(cases);
    expect_as_on_host(cases, 3);
  }
}

TEST(SamplerGpu, AsOnTheHostWithLargeVocabularies) {
  uint64_t seed = fresh_seed() + 1000000;
  for (const int vocab : {128256, 151936, 262144}) {
    std::vector<Case> cases;
    for (int i = 0; i < 24; ++i) {
      cases.push_back(random_case(++seed, vocab));
      SamplingParams& params = cases.back().params;
      if (i % 5 == 0) spoil(cases.back().logits, seed);
      if (i % 6 == 1) params.top_k = 5000 + static_cast<int32_t>(seed % 50000);
      if (i % 6 == 2) params.top_k = 0, params.top_p = 0.9999f, params.temperature = 1.5f;
      if (i % 6 == 3) params.top_k = 40, params.top_p = 1.0f;
      if (i % 6 == 4) params.logprobs = 20;
    }
    expect_as_on_host(cases);
    expect_as_on_host(cases, 2);
  }
}

// One kind of sampling in all rows, many draws: the cases that take one launch.
TEST(SamplerGpu, ManyDraws) {
  uint64_t seed = fresh_seed() + 2000000;
  for (const float temperature : {0.0f, 0.05f, 0.8f, 3.0f, 1e-30f, 1e30f}) {
    for (const float spread : {0.0f, 0.3f, 3.0f, 1e30f}) {
      std::vector<Case> cases;
      Case one;
      one.logits = reference::random_logits(++seed, 32003, spread);
      one.params.temperature = temperature;
      for (int i = 0; i < 64; ++i) {
        one.params.seed = ++seed;
        cases.push_back(one);
      }
      expect_as_on_host(cases);
    }
  }
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (trireme::cuda_device_count() == 0) {
    std::printf("skipped: %s\n", trireme::cuda_unavailable().c_str());
    return 77;
  }
  return RUN_ALL_TESTS();
}
