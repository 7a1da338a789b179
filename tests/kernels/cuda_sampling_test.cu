// The sampling kernels below LogitRows: tokens that stay on the device (greedy and whole-vocabulary
// draws) against plain loops over the vocabulary. Over several ranks: sampler_gpu_test. A plain
// program: exits 1 if anything is wrong, 77 without a GPU; TRIREME_TEST_SEED repeats a run.
#include "kernels/cuda/sampling.h"

#include <algorithm>
#include <memory>
#include <random>

#include "tests/kernels/cuda_decode_fixture.h"

namespace trireme::testing {
namespace {

using cuda::DeviceLogits;
using cuda::LogitAnswer;
using cuda::LogitTask;

constexpr int32_t kUntouched = -77;

int32_t expected(const float* logits, int32_t vocab, const LogitTask& task) {
  Candidate best;
  Scored drawn;
  for (int32_t token = 0; token < vocab; ++token) {
    const Candidate one{legal_logit(logits[token]), token};
    if (one.logit == kNoLogit) continue;
    if (best.token < 0 || better(one, best)) best = one;
    if (task.kind != LogitTask::kDraw) continue;
    const Scored scored = task.draw.score(one);
    if (better(scored, drawn)) drawn = scored;
  }
  return task.kind == LogitTask::kDraw ? drawn.token : best.token;
}

struct Fixture {
  std::mt19937_64 random;
  int32_t vocab, rows;
  Array<float> logits;
  Array<LogitAnswer> partial;
  Array<uint32_t> arrivals;
  Array<float> maxima;
  Array<LogitTask> tasks;
  Array<LogitAnswer> answers;
  Array<int32_t> newest;
  Array<cuda::ChosenTokens> chosen;
  DeviceLogits view;
  uint64_t number = 0;

  Fixture(uint64_t seed, int32_t vocab_size, int32_t row_count)
      : random(seed), vocab(vocab_size), rows(row_count) {
    const int32_t blocks = std::max(1, cuda::logit_parts(vocab));
    logits.allocate(static_cast<size_t>(vocab) * rows, 0.0f);
    partial.allocate(static_cast<size_t>(blocks) * rows, LogitAnswer{});
    arrivals.allocate(rows, 0u);
    maxima.allocate(static_cast<size_t>(blocks) * 64 * rows, 0.0f);
    view = {logits.device, vocab, vocab, 0, maxima.device};
    tasks.allocate(rows, LogitTask{});
    answers.allocate(rows, LogitAnswer{});
    newest.allocate(static_cast<size_t>(rows) + 3, kUntouched);
    chosen.allocate(1, cuda::ChosenTokens{});
  }

  void fill() {
    std::normal_distribution<float> normal(0.0f, 3.0f);
    for (int32_t row = 0; row < rows; ++row) {
      float* to = logits.host.data() + static_cast<size_t>(row) * vocab;
      const auto kind = random() % 8;
      for (int32_t i = 0; i < vocab; ++i) {
        to[i] = kind == 0 ? 1.0f : kind == 1 ? std::round(normal(random)) : normal(random);
        if (kind == 2 && random() % 3 == 0) to[i] = std::numeric_limits<float>::quiet_NaN();
        if (kind == 3) to[i] = kNoLogit;
      }
    }
  }

  void next() {
    fill();
    std::vector<int32_t> slots(rows + 3);
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int32_t>(i);
    std::shuffle(slots.begin(), slots.end(), random);
    for (int32_t row = 0; row < rows; ++row) {
      LogitTask task;
      task.row = row;
      task.kind = random() % 2 == 0 ? LogitTask::kBest : LogitTask::kDraw;
      task.draw.key = random();
      task.draw.inverse_temperature = 1.0 / std::uniform_real_distribution<double>(0.2, 3)(random);
      task.slot = slots[row];
      tasks.host[row] = task;
    }
    tasks.upload();
    std::fill(newest.host.begin(), newest.host.end(), kUntouched);
    newest.upload();
    logits.upload();
  }

  void run() {
    next();
    cuda::launch_logit_scan(view, tasks.device, rows, true, {partial.device, arrivals.device},
                            answers.device, nullptr);
    cuda::ChooseTokens choose;
    choose.tasks = tasks.device;
    choose.answers = answers.device;
    choose.count = rows;
    choose.newest = newest.device;
    choose.chosen = chosen.device;
    choose.number = ++number;
    cuda::launch_choose(choose, nullptr);
    CHECK_CUDA(cudaDeviceSynchronize());
    const auto tokens = newest.download();
    const auto told = chosen.download();
    std::vector<int32_t> wanted(tokens.size(), kUntouched);
    for (int32_t row = 0; row < rows; ++row) {
      const LogitTask& task = tasks.host[row];
      const int32_t token =
          expected(logits.host.data() + static_cast<size_t>(row) * vocab, vocab, task);
      wanted[task.slot] = std::max(token, 0);
      EXPECT(told[0].tokens[row] == token, "vocabulary %d, row %d, kind %d: %d, expected %d", vocab,
             row, task.kind, told[0].tokens[row], token);
    }
    EXPECT(told[0].number == number, "choices %llu are told as %llu",
           static_cast<unsigned long long>(number),
           static_cast<unsigned long long>(told[0].number));
    EXPECT(wanted == tokens, "newest tokens of a vocabulary of %d", vocab);
  }
};

int run() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU\n");
    return 77;
  }
  const char* given = std::getenv("TRIREME_TEST_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("TRIREME_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  for (const int32_t vocab : {1, 2, 259, 4096, 4097, 16384, 50257}) {
    Fixture fixture(seed + static_cast<uint64_t>(vocab), vocab, 17);
    for (int i = 0; i < 9; ++i) fixture.run();  // the scratch is as a run left it
  }
  std::printf(failures == 0 ? "passed\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace trireme::testing

int main() { return trireme::testing::run(); }
