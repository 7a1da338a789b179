// Where top_k and top_p cut a row, and its largest logit, against a plain sort of the whole
// vocabulary: the last token that is kept, exactly. Over several ranks: sampler_gpu_test. A plain
// program: exits 1 if anything is wrong, 77 without a GPU; TRIREME_TEST_SEED repeats a run.
#include <algorithm>
#include <random>

#include "kernels/cuda/sampling.h"
#include "tests/kernels/cuda_decode_fixture.h"

namespace trireme::testing {
namespace {

using cuda::Cut;
using cuda::LogitTask;

// How often a run took each way through the kernels: one that was never taken is a failure.
struct Ways {
  int none = 0, by_count = 0, by_mass = 0, both = 0, few = 0, many = 0, last_bucket = 0, ties = 0;
};

struct Expected {
  double max = 0.0;
  Candidate worst = Draw{}.worst;
  bool by_count = false, by_mass = false;
};

Expected expected(const float* logits, int32_t begin, int32_t vocab, const Cut& cut) {
  std::vector<Candidate> kept;
  for (int32_t i = 0; i < vocab; ++i) {
    const float logit = legal_logit(logits[i]);
    if (logit != kNoLogit) kept.push_back({logit, begin + i});
  }
  Expected answer;
  answer.max = static_cast<double>(kNoLogit);
  if (kept.empty()) return answer;
  std::sort(kept.begin(), kept.end(), [](auto& a, auto& b) { return better(a, b); });
  const float max = kept[0].logit;
  answer.max = static_cast<double>(max);
  if (cut.top_k > 0 && static_cast<size_t>(cut.top_k) < kept.size()) {
    answer.by_count = true;
    kept.resize(cut.top_k);
  }
  if (cut.top_p < 1.0f) {
    answer.by_mass = true;
    int64_t total = 0, sum = 0;
    for (const Candidate& one : kept) total += mass_of(one.logit, max, cut.inverse_temperature);
    const double wanted = static_cast<double>(cut.top_p) * static_cast<double>(total);
    size_t count = 0;
    while (count == 0 || (count < kept.size() && static_cast<double>(sum) < wanted)) {
      sum += mass_of(kept[count++].logit, max, cut.inverse_temperature);
    }
    kept.resize(count);
  }
  if (answer.by_count || answer.by_mass) answer.worst = kept.back();
  return answer;
}

struct Fixture {
  static constexpr int32_t kBegin = 1000;  // of the vocabulary: this rank's first token

  std::mt19937_64 random;
  int32_t vocab, count;
  Array<float> logits;
  Array<LogitTask> tasks;
  Array<Cut> cuts;
  Array<cuda::CutBin> bins;
  Array<Candidate> lists;

  Fixture(uint64_t seed, int32_t vocab_size, int32_t cut_count)
      : random(seed), vocab(vocab_size), count(cut_count) {
    logits.allocate(static_cast<size_t>(vocab) * count, 0.0f);
    tasks.allocate(count, LogitTask{});
    cuts.allocate(count, Cut{});
    bins.allocate(cuda::cut_bins_bytes(count) / sizeof(cuda::CutBin), {~0ull, ~0u});
    lists.allocate(static_cast<size_t>(count) * cuda::kCutRoom, Candidate{1e9f, 5});
  }

  void fill(float* to) {
    const float spreads[] = {0.0f, 1e-5f, 0.01f, 1.0f, 3.0f, 10.0f, 100.0f, 1e30f};
    std::normal_distribution<float> normal(0.0f, 1.0f);
    const float spread = spreads[random() % 8];
    const float grid = random() % 4 == 0 ? 0.25f : 0.0f;  // ties
    const auto absent = random() % 8;                     // of 7: how many are no logits
    for (int32_t i = 0; i < vocab; ++i) {
      float value = normal(random) * spread;
      if (grid > 0.0f) value = std::round(value / grid) * grid;
      if (absent == 7 || (absent > 4 && random() % 7 < absent)) value = kNoLogit;
      to[i] = value;
    }
    if (random() % 4 == 0) to[random() % vocab] = std::numeric_limits<float>::quiet_NaN();
    if (random() % 8 == 0) to[random() % vocab] = std::numeric_limits<float>::infinity();
  }

  // From few to all, and around the sizes of blocks and lists.
  int32_t some_count() {
    const int32_t counts[] = {0, 0, 1, 2, 40, 255, 256, 257, vocab - 1, vocab, 1 << 30};
    const auto which = random() % 13;
    return which < 11 ? std::max(0, counts[which]) : 1 + static_cast<int32_t>(random() % vocab);
  }
  float some_share() {
    const float shares[] = {1e-9f, 0.1f, 0.5f, 0.9f, 0.999f, 0.9999999f, 1.0f, 1.0f};
    return shares[random() % 8];
  }

  void run(Ways& ways) {
    for (int32_t i = 0; i < count; ++i) {
      fill(logits.host.data() + static_cast<size_t>(i) * vocab);
      tasks.host[i] = {};
      tasks.host[i].kind = LogitTask::kDraw;
      Cut& cut = cuts.host[i] = {};
      cut.row = static_cast<int32_t>(random() % (i + 1));  // some rows have several cuts
      cut.choice = count - 1 - i;
      cut.top_k = some_count();
      cut.top_p = some_share();
      const float temperatures[] = {0.1f, 0.7f, 1.0f, 5.0f, 1e30f};
      cut.inverse_temperature = 1.0f / temperatures[random() % 5];
    }
    logits.upload();
    tasks.upload();
    cuts.upload();
    cuda::LaunchCuts args;
    args.rows = {logits.device, vocab, vocab, kBegin, nullptr};
    args.tasks = tasks.device;
    args.cuts = cuts.device;
    args.count = count;
    args.rounds = 2;
    args.bins = bins.device;
    args.lists = lists.device;
    cuda::launch_cuts(args, nullptr);
    CHECK_CUDA(cudaDeviceSynchronize());
    const auto found = tasks.download();
    const auto after = cuts.download();
    for (int32_t i = 0; i < count; ++i) check(cuts.host[i], after[i], found, ways);
  }

  void check(const Cut& cut, const Cut& after, const std::vector<LogitTask>& found, Ways& ways) {
    const Expected wanted =
        expected(logits.host.data() + static_cast<size_t>(cut.row) * vocab, kBegin, vocab, cut);
    const Draw& draw = found[cut.choice].draw;
    EXPECT(draw.max == wanted.max, "vocabulary %d, maximum %g, expected %g", vocab, draw.max,
           wanted.max);
    EXPECT(
        draw.worst.token == wanted.worst.token && draw.worst.logit == wanted.worst.logit,
        "vocabulary %d, top_k %d, top_p %.9g, 1/T %g: the last kept is %d (%g), expected %d (%g)",
        vocab, cut.top_k, static_cast<double>(cut.top_p),
        static_cast<double>(cut.inverse_temperature), draw.worst.token,
        static_cast<double>(draw.worst.logit), wanted.worst.token,
        static_cast<double>(wanted.worst.logit));
    if (!wanted.by_count && !wanted.by_mass) {
      ++ways.none;
      return;
    }
    ++(wanted.by_count && wanted.by_mass ? ways.both
       : wanted.by_count                 ? ways.by_count
                                         : ways.by_mass);
    ++(after.part_count <= cuda::kCutRoom ? ways.few : ways.many);
    if (after.bucket == kMassBuckets - 1) ++ways.last_bucket;
    // A token as good as the last kept one, but for its id.
    const float* row = logits.host.data() + static_cast<size_t>(cut.row) * vocab;
    for (int32_t token = wanted.worst.token - kBegin + 1; token < vocab; ++token) {
      if (legal_logit(row[token]) != wanted.worst.logit) continue;
      ++ways.ties;
      break;
    }
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
  const bool brief = std::getenv("TRIREME_TEST_BRIEF") != nullptr;  // under a sanitizer
  Ways ways;
  for (const int32_t vocab : {1, 2, 259, 4096, 4097, 20011, 151936}) {
    Fixture fixture(seed + static_cast<uint64_t>(vocab), vocab, brief || vocab > 100000 ? 24 : 64);
    const int rounds = brief ? 1 : 4;
    for (int i = 0; i < rounds; ++i) fixture.run(ways);  // bins and lists are as a run left them
  }
  EXPECT(ways.none > 0 && ways.by_count > 0 && ways.by_mass > 0 && ways.both > 0 && ways.few > 0 &&
             ways.many > 0 && ways.last_bucket > 0 && ways.ties > 0,
         "not everything was tried: none %d, by count %d, by mass %d, both %d, few %d, many %d, "
         "last bucket %d, ties %d",
         ways.none, ways.by_count, ways.by_mass, ways.both, ways.few, ways.many, ways.last_bucket,
         ways.ties);
  std::printf("%s: %d cuts by count, %d by mass, %d by both; among few %d, many %d\n",
              failures == 0 ? "passed" : "FAILED", ways.by_count, ways.by_mass, ways.both, ways.few,
              ways.many);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace trireme::testing

int main() { return trireme::testing::run(); }
