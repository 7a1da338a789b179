// The sampler's tests with logits on a GPU, and the GPU's answers against the host's, bit for bit,
// on fresh random logits (TRIREME_TEST_SEED repeats a run). Skipped (exit 77) without a GPU.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "base/thread_pool.h"
#include "kernels/cuda_module.h"
#include "tests/support/gpu_ranks.h"
#include "tests/unit/sampler_cases.h"

namespace trireme {

namespace {

// Each rank with a backend (and stream) of its own.
class GpuPlace final : public LogitPlace {
 public:
  explicit GpuPlace(ThreadPool& pool) : backend_(make_cuda_backend(pool, 0)) {}
  std::unique_ptr<LogitRows> rows() override { return backend_->make_logit_rows(1); }
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

// Under a sanitizer, which is slow: a part of the cases, and on one rank alone, as it may run
// kernels that wait for each other one after the other.
bool brief() { return std::getenv("TRIREME_TEST_BRIEF") != nullptr; }

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
    for (int i = 0; i < (brief() ? 12 : 60); ++i) {
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
    if (brief() && vocab != 151936) continue;
    std::vector<Case> cases;
    for (int i = 0; i < (brief() ? 6 : 24); ++i) {
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
    if (brief() && temperature != 0.8f) continue;
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

// What one rank chooses from. Where tokens have been generated, the last of them is the newest of
// the row's slot on the device, and what penalties count on the host lacks it.
struct Choosing {
  std::vector<float> logits;
  std::vector<SampleRow> rows;
  std::vector<int32_t> slots;
  std::vector<TokenCounts> counts;
  SamplingParams greedy;
  std::vector<float> newest_logits;  // the best is the token that shall be the newest
  std::vector<SampleRow> newest_rows;

  Choosing(const std::vector<Case>& cases, const Part& part) : counts(cases.size()) {
    greedy.temperature = 0.0f;
    for (size_t i = 0; i < cases.size(); ++i) {
      const Case& one = cases[i];
      logits.insert(logits.end(), one.logits.begin() + part.begin, one.logits.begin() + part.end());
      slots.push_back(static_cast<int32_t>(i * 2 + 1));
      SampleRow row;
      row.params = &one.params;
      row.counts = &counts[i];
      row.output_index = one.output_index;
      row.position = static_cast<int32_t>(one.generated.size());
      for (const int32_t token : one.prompt) counts[i].add(token, false);
      SampleRow& newest = newest_rows.emplace_back();
      newest.params = &greedy;
      newest_logits.resize(logits.size(), 0.0f);
      if (!one.generated.empty()) {
        row.newest_slot = slots.back();
        for (size_t t = 0; t + 1 < one.generated.size(); ++t) {
          counts[i].add(one.generated[t], true);
        }
        const int64_t index = one.generated.back() - part.begin;
        if (index >= 0 && index < part.count) {
          newest_logits[static_cast<size_t>(static_cast<int64_t>(i) * part.count + index)] = 1.0f;
        }
      }
      rows.push_back(row);
    }
  }
};

// Tokens chosen on the device, by ranks that exchange what they found through each other's memory.
// `width` of activations decides how many of them they exchange at a time.
std::vector<int32_t> choose_on_gpu(const std::vector<Case>& cases, int ranks, int64_t width) {
  GpuRanks world(ranks, width);
  const auto vocab = static_cast<int64_t>(cases.front().logits.size());
  const auto parts = uneven_parts(vocab, ranks);
  auto group = make_thread_communicators(ranks, "tp");
  std::vector<std::vector<int32_t>> results(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < results.size(); ++rank) {
    threads.emplace_back([&, rank] {
      const Part part = parts[rank];
      Backend& backend = world.backend(rank);
      Sampler sampler(*group[rank], part, vocab, backend.make_logit_rows(256));
      const Choosing choosing(cases, part);
      const auto count = static_cast<int64_t>(cases.size());
      ASSERT_TRUE(sampler.can_queue(choosing.rows));
      std::vector<Buffer> kept;  // freeing waits for the device, on which others may be waiting
      const int rounds = brief() ? 1 : 5;  // more than may be on their way at a time
      for (int round = 0; round < rounds; ++round) {
        // Both before anything waits for peers: a copy that waits for this rank's kernels keeps the
        // other ranks of this process from queueing theirs.
        for (const auto* logits : {&choosing.newest_logits, &choosing.logits}) {
          kept.push_back(backend.upload(*logits));
        }
        const auto queue = [&](const Buffer& logits, std::span<const SampleRow> rows) {
          return sampler.queue(matrix_f32(logits.as<float>(), count, part.count), rows,
                               choosing.slots);
        };
        const uint64_t newest = queue(kept[kept.size() - 2], choosing.newest_rows);
        const uint64_t number = queue(kept.back(), choosing.rows);
        while (!sampler.done(number)) std::this_thread::yield();
        std::vector<int32_t> tokens;
        sampler.take(newest, tokens);
        for (size_t i = 0; i < cases.size(); ++i) {
          if (!cases[i].generated.empty()) {
            EXPECT_EQ(tokens[i], cases[i].generated.back());
          }
        }
        sampler.take(number, tokens);
        if (round > 0) {
          EXPECT_EQ(tokens, results[rank]);
        }
        results[rank] = tokens;
        backend.synchronize();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
  return results[0];
}

void expect_chosen_as_on_host(const std::vector<Case>& cases) {
  const auto host = sample_on_host(cases);
  for (const int ranks : {1, 2, 3, 4}) {
    if (ranks > 1 && brief()) continue;
    const auto tokens = choose_on_gpu(cases, ranks, ranks % 2 == 0 ? 1024 : 65536);
    for (size_t i = 0; i < cases.size(); ++i) {
      const SamplingParams& params = cases[i].params;
      EXPECT_EQ(tokens[i], host[i].token)
          << "case " << i << " on " << ranks << " ranks: temperature " << params.temperature
          << ", top_k " << params.top_k << ", top_p " << params.top_p << ", min_p " << params.min_p;
    }
  }
}

// A random case that the device can choose for.
Case choosable_case(uint64_t seed, int vocab) {
  Case one = random_case(seed, vocab);
  one.score = false;
  one.params.logprobs = -1;
  return one;
}

TEST(SamplerGpu, ChosenOnTheDevice) {
  uint64_t seed = fresh_seed() + 3000000;
  for (const int vocab : {259, 4097, 128256}) {
    std::vector<Case> cases;
    for (int i = 0; i < (brief() ? 12 : 40); ++i) {
      cases.push_back(choosable_case(++seed, vocab));
      SamplingParams& params = cases.back().params;
      if (i % 4 == 0) params.top_k = 0, params.top_p = 1.0f, params.min_p = 0.0f;
      if (i % 3 == 0) spoil(cases.back().logits, seed);
    }
    expect_chosen_as_on_host(cases);
  }
}

// Cuts among many tokens that are close together or equal, and far from the best.
TEST(SamplerGpu, CutOnTheDevice) {
  uint64_t seed = fresh_seed() + 4000000;
  for (const float spread : {0.0f, 1e-4f, 0.1f, 3.0f, 100.0f}) {
    for (const float temperature : {1e-30f, 0.7f, 1e30f}) {
      if (brief() && (spread > 1.0f || temperature > 1.0f)) continue;
      std::vector<Case> cases;
      Case one;
      for (int i = 0; i < 24; ++i) {
        if (i % 8 == 0) one.logits = reference::random_logits(++seed, 20011, spread);
        if (i == 16) {  // a grid
          for (float& logit : one.logits) logit = std::round(logit * 4.0f) / 4.0f;
        }
        one.params.seed = ++seed;
        one.params.temperature = temperature;
        const int32_t counts[] = {0, 1, 255, 5000, 20010, 20011, 1 << 30};
        const float shares[] = {1e-9f, 0.3f, 0.9999999f, 1.0f};
        one.params.top_k = counts[seed % 7];
        one.params.top_p = shares[seed / 7 % 4];
        one.params.min_p = seed % 5 == 0 ? 0.05f : 0.0f;
        cases.push_back(one);
      }
      expect_chosen_as_on_host(cases);
    }
  }
}

// A rank whose peers never come, once it is told not to wait for them: it ends, and writes nothing
// beyond its lists (which memcheck would see), whatever lies where the peers' words should.
TEST(SamplerGpu, EndsWithoutPeers) {
  constexpr int kVocab = 20011;
  GpuRanks world(3, 1024);
  world.end_waiting();
  auto group = make_thread_communicators(3, "tp");
  const Part part = uneven_parts(kVocab, 3)[0];
  Backend& backend = world.backend(0);
  std::vector<std::unique_ptr<Sampler>> samplers(group.size());
  std::vector<std::thread> threads;  // they tell each other of their parts
  for (size_t rank = 0; rank < group.size(); ++rank) {
    threads.emplace_back([&, rank] {
      const Part own = uneven_parts(kVocab, 3)[rank];
      auto rows = world.backend(rank).make_logit_rows(256);
      samplers[rank] = std::make_unique<Sampler>(*group[rank], own, kVocab, std::move(rows));
    });
  }
  for (std::thread& thread : threads) thread.join();
  Sampler& sampler = *samplers[0];
  std::vector<Case> cases;
  std::vector<float> logits;
  std::vector<int32_t> slots;
  uint64_t seed = fresh_seed() + 5000000;
  for (const float spread : {0.0f, 1e-4f, 3.0f, 100.0f}) {
    for (const int32_t top_k : {0, 40, 5000}) {
      Case one;
      one.logits = reference::random_logits(++seed, part.count, spread);
      one.params.top_k = top_k;
      one.params.top_p = 0.9f;
      one.params.seed = seed;
      logits.insert(logits.end(), one.logits.begin(), one.logits.end());
      slots.push_back(static_cast<int32_t>(slots.size()));
      cases.push_back(std::move(one));
    }
  }
  std::vector<SampleRow> rows(cases.size());
  for (size_t i = 0; i < cases.size(); ++i) rows[i].params = &cases[i].params;
  const Buffer values = backend.upload(logits);
  const auto count = static_cast<int64_t>(cases.size());
  for (int round = 0; round < 5; ++round) {
    const uint64_t number =
        sampler.queue(matrix_f32(values.as<float>(), count, part.count), rows, slots);
    while (!sampler.done(number)) std::this_thread::yield();
    std::vector<int32_t> tokens;
    sampler.take(number, tokens);
    EXPECT_EQ(tokens.size(), cases.size());
    backend.synchronize();  // an error of the device is thrown here
  }
}

// Penalties that decide: the newest token on the device, which has been seen before or never, is
// the best one but for its penalty.
TEST(SamplerGpu, PenaltiesOfTheNewestToken) {
  constexpr int kVocab = 4097;
  uint64_t seed = fresh_seed() + 6000000;
  std::mt19937_64 random(seed);
  std::vector<Case> cases;
  int decided = 0;
  for (int i = 0; i < 48; ++i) {
    Case one;
    one.logits = reference::random_logits(++seed, kVocab, 1.0f);
    const auto best = static_cast<int32_t>(std::max_element(one.logits.begin(), one.logits.end()) -
                                           one.logits.begin());
    one.params.temperature = i % 2 == 0 ? 0.0f : 0.2f;
    one.params.seed = seed;
    if (i % 3 == 0) one.params.repetition_penalty = 1.5f;
    if (i % 3 == 1) one.params.frequency_penalty = 0.9f;
    if (i % 3 == 2) one.params.presence_penalty = 2.0f;
    for (int t = 0; t < 10; ++t) one.prompt.push_back(static_cast<int32_t>(random() % kVocab));
    if (i % 4 == 0) one.prompt.push_back(best);
    for (int t = 0; t < 5; ++t) one.generated.push_back(static_cast<int32_t>(random() % kVocab));
    if (i % 5 == 0) one.generated.push_back(best);
    one.generated.push_back(best);
    Case without = one;
    without.generated.pop_back();
    if (without.params.greedy() && expected_token(without) != expected_token(one)) ++decided;
    cases.push_back(std::move(one));
  }
  EXPECT_GT(decided, 8);
  expect_chosen_as_on_host(cases);
}

// What needs the host: numbers beside the token.
TEST(SamplerGpu, WhatIsNotQueued) {
  auto single = make_single_communicator();
  ThreadPool pool(1);
  const auto backend = make_cuda_backend(pool, 0);
  Sampler sampler(*single, {0, 1000}, 1000, backend->make_logit_rows(4));
  SamplingParams params;
  SampleRow row;
  row.params = &params;
  const auto queued = [&] { return sampler.can_queue({&row, 1}); };
  EXPECT_TRUE(queued());
  params.temperature = 0;
  EXPECT_TRUE(queued());
  params.logprobs = 0;
  EXPECT_FALSE(queued());
  params.logprobs = -1;
  params.presence_penalty = 0.5f;
  EXPECT_TRUE(queued());
  params.temperature = 1;
  params.top_p = 0.9f;
  params.top_k = 40;
  params.min_p = 0.1f;
  EXPECT_TRUE(queued());
  row.params = nullptr;
  row.target = 3;
  EXPECT_FALSE(queued());
  EXPECT_FALSE(sampler.can_queue({}));
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
