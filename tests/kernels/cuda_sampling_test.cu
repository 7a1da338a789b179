// The sampling kernels below LogitRows: tokens that stay on the device (greedy and whole-vocabulary
// draws) on one rank and merged over several, against plain loops over the vocabulary. A plain
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

// One rank's part of the rows, with its scratch.
struct Part {
  Array<float> logits;
  Array<LogitAnswer> partial;
  Array<uint32_t> arrivals;
  Array<float> maxima;
  DeviceLogits rows;
};

struct Fixture {
  std::mt19937_64 random;
  int32_t vocab, rows, ranks;
  std::vector<float> logits;
  std::vector<std::unique_ptr<Part>> parts;
  Array<LogitTask> tasks;
  Array<LogitAnswer> answers;
  Array<LogitAnswer> merged;
  Array<int32_t> last_token;

  Fixture(uint64_t seed, int32_t vocab_size, int32_t row_count, int32_t rank_count)
      : random(seed), vocab(vocab_size), rows(row_count), ranks(rank_count) {
    logits.resize(static_cast<size_t>(vocab) * rows);
    fill();
    int32_t begin = 0;
    for (int32_t rank = 0; rank < ranks; ++rank) {
      int32_t end = rank + 1 == ranks ? vocab : vocab * (rank + 1) / ranks + 5 * rank - 3;
      end = std::clamp(end, begin, vocab);
      auto part = std::make_unique<Part>();
      const int32_t size = end - begin, blocks = std::max(1, cuda::logit_parts(size));
      part->logits.allocate(static_cast<size_t>(size) * rows, 0.0f);
      part->partial.allocate(static_cast<size_t>(blocks) * rows, LogitAnswer{});
      part->arrivals.allocate(rows, 0u);
      part->maxima.allocate(static_cast<size_t>(blocks) * 64 * rows, 0.0f);
      part->rows = {part->logits.device, size, size, begin, part->maxima.device};
      parts.push_back(std::move(part));
      begin = end;
    }
    tasks.allocate(rows, LogitTask{});
    answers.allocate(static_cast<size_t>(rows) * ranks, LogitAnswer{});
    merged.allocate(rows, LogitAnswer{});
    last_token.allocate(static_cast<size_t>(rows) + 3, kUntouched);
  }

  void fill() {
    std::normal_distribution<float> normal(0.0f, 3.0f);
    for (int32_t row = 0; row < rows; ++row) {
      float* to = logits.data() + static_cast<size_t>(row) * vocab;
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
      task.slot = random() % 5 == 0 ? -1 : slots[row];
      tasks.host[row] = task;
    }
    tasks.upload();
    std::fill(last_token.host.begin(), last_token.host.end(), kUntouched);
    last_token.upload();
    for (auto& part : parts) {
      const DeviceLogits& view = part->rows;
      for (int32_t row = 0; row < rows; ++row) {
        std::copy_n(logits.data() + static_cast<size_t>(row) * vocab + view.vocab_begin, view.vocab,
                    part->logits.host.data() + static_cast<size_t>(row) * view.vocab);
      }
      part->logits.upload();
    }
  }

  void run() {
    next();
    for (int32_t rank = 0; rank < ranks; ++rank) {
      Part& part = *parts[rank];
      cuda::launch_logit_scan(part.rows, tasks.device, rows, true,
                              {part.partial.device, part.arrivals.device},
                              answers.device + static_cast<size_t>(rank) * rows,
                              ranks == 1 ? last_token.device : nullptr, nullptr);
    }
    if (ranks > 1) {
      cuda::launch_merge_answers(answers.device, ranks, tasks.device, rows, last_token.device,
                                 merged.device, nullptr);
    }
    CHECK_CUDA(cudaDeviceSynchronize());
    const auto tokens = last_token.download();
    const auto found = ranks == 1 ? answers.download() : merged.download();
    std::vector<int32_t> wanted(tokens.size(), kUntouched);
    for (int32_t row = 0; row < rows; ++row) {
      const LogitTask& task = tasks.host[row];
      const int32_t token = expected(logits.data() + static_cast<size_t>(row) * vocab, vocab, task);
      if (task.slot >= 0) wanted[task.slot] = token;
      EXPECT(found[row].token == token, "vocabulary %d, %d ranks, row %d, kind %d: %d, expected %d",
             vocab, ranks, row, task.kind, found[row].token, token);
    }
    EXPECT(wanted == tokens, "last tokens of a vocabulary of %d, %d ranks", vocab, ranks);
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
    for (int32_t ranks = 1; ranks <= 4; ++ranks) {
      Fixture fixture(seed + static_cast<uint64_t>(vocab * 8 + ranks), vocab, 17, ranks);
      for (int i = 0; i < 3; ++i) fixture.run();  // the scratch is as a run left it
    }
  }
  std::printf(failures == 0 ? "passed\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace trireme::testing

int main() { return trireme::testing::run(); }
