// A served model on GPUs, one rank a GPU: the same tokens whether a step is launched before the
// last one's tokens are known or after, whichever way the ranks' sums are made, and whether a
// prompt is computed or found in the prefix cache. A plain program for 1, 2 or 4 ranks under
// launch/mpirun; exits with 77 where a rank has no GPU of its own. With TRIREME_TEST_BRIEF fewer
// and shorter requests, where every sum takes milliseconds (shared_gpus).
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <thread>

#include "base/log.h"
#include "kernels/cuda_module.h"
#include "runtime/instance.h"
#include "tests/dist/gpu_ranks.h"
#include "tests/unit/engine_world.h"

namespace trireme {
namespace {

constexpr int kVocab = 259;

// Half greedy or with a temperature alone, which one look at the logits decides; half of every
// kind. Prompts of up to `prompt` tokens: up to 16 are computed by kernels that are the same in
// every start; the library's algorithms for larger steps are chosen by timing.
std::vector<Sequence> requests(int count, int prompt, int max_tokens) {
  std::vector<Sequence> sequences;
  for (int i = 0; i < count; ++i) {
    Sequence one = random_sequence(static_cast<uint64_t>(i), kVocab, 1 + i * 7 % prompt, max_tokens,
                                   i % 2 == 1);
    if (i % 4 == 3) one.sampling.logprobs = 0;
    if (i % 4 == 2) {
      one.sampling.temperature = 0.9f;
      one.sampling.seed = static_cast<uint64_t>(i) * 77;
      one.sampling.stop_ids = {3, 5, 9, 11, 40};
      one.sampling.banned_tokens = {7};
    }
    sequences.push_back(std::move(one));
  }
  return sequences;
}

struct Ended {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // where they are wanted
  FinishReason finish = FinishReason::kNone;
  int32_t cached = 0;  // of the prompt
  bool operator==(const Ended& other) const {
    return tokens == other.tokens && logprobs == other.logprobs && finish == other.finish;
  }
};

// All sequences at once, or one after the other, so that every step has the same rows in every run.
std::vector<Ended> serve(Instance& instance, std::vector<Sequence> sequences, bool together) {
  std::vector<Ended> ends(sequences.size());
  std::mutex mutex;
  std::condition_variable changed;
  size_t ended = 0;
  instance.engine().set_sink([&](std::vector<EngineEvent>&& events) {
    const std::lock_guard lock(mutex);
    for (const EngineEvent& event : events) {
      Ended& one = ends[event.id];
      one.cached = std::max(one.cached, event.cached_tokens);
      if (event.token >= 0) {
        one.tokens.push_back(event.token);
        one.logprobs.push_back(event.logprob);
      }
      if (event.finish == FinishReason::kNone) continue;
      one.finish = event.finish;
      ++ended;
    }
    changed.notify_all();
  });
  std::thread client([&] {
    for (size_t i = 0; i < sequences.size(); ++i) sequences[i].id = i;
    const size_t all = sequences.size();
    if (together) instance.engine().submit(std::move(sequences));
    for (size_t i = 0; i < all; ++i) {
      if (!together) instance.engine().submit({sequences[i]});
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return ended > i; });
    }
    instance.engine().stop();
  });
  instance.engine().run();
  client.join();
  return ends;
}

struct Setting {
  std::string look_ahead;
  std::string all_reduce;
  int32_t max_chunk = 0;  // 0: the profile's
};

class Runs {
 public:
  Runs(const MpiEnvironment& environment, std::string layout)
      : environment_(environment), layout_(std::move(layout)) {}

  std::vector<Ended> run(const std::string& fixture, const Setting& setting,
                         const std::vector<Sequence>& sequences, bool together) {
    setenv("TRIREME_ALL_REDUCE", setting.all_reduce.c_str(), 1);
    InstanceOptions options = small_options(fixture, layout_);
    options.device = "cuda";
    options.look_ahead = setting.look_ahead;
    if (setting.max_chunk > 0) options.max_chunk = setting.max_chunk;
    options.max_context = 0;
    options.kv_memory = 256 << 20;
    Instance instance(environment_, options);
    if (environment_.rank() == 0) return serve(instance, sequences, together);
    instance.worker().run();
    return {};
  }
  // On rank 0: whether two runs are the same.
  void expect_same(const std::vector<Ended>& a, const std::vector<Ended>& b,
                   const std::string& what) {
    size_t different = 0;
    if (environment_.rank() != 0) return;
    for (size_t i = 0; i < a.size(); ++i) {
      if (a[i] == b[i]) continue;
      ++different;
      const auto token = std::mismatch(a[i].tokens.begin(), a[i].tokens.end(), b[i].tokens.begin(),
                                       b[i].tokens.end());
      const auto logprob = std::mismatch(a[i].logprobs.begin(), a[i].logprobs.end(),
                                         b[i].logprobs.begin(), b[i].logprobs.end());
      std::printf(
          "output %zu: tokens differ from %td of %zu and %zu on, log-probabilities from "
          "%td on\n",
          i, token.first - a[i].tokens.begin(), a[i].tokens.size(), b[i].tokens.size(),
          logprob.first - a[i].logprobs.begin());
    }
    std::printf("%s %s: %zu outputs, %zu differ\n", layout_.c_str(), what.c_str(), a.size(),
                different);
    if (different > 0 || a.empty()) failed_ = true;
  }
  // On rank 0: that most outputs begin alike, for runs whose sums are rounded otherwise or whose
  // steps have other rows: near ties may fall otherwise, and outputs then part for good. Sums that
  // are wrong would leave next to none alike.
  void expect_alike(const std::vector<Ended>& a, const std::vector<Ended>& b,
                    const std::string& what) {
    if (environment_.rank() != 0) return;
    constexpr size_t kFirst = 8;
    size_t alike = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      const auto head = [&](const std::vector<int32_t>& tokens) {
        return std::span(tokens).first(std::min(tokens.size(), kFirst));
      };
      alike += std::ranges::equal(head(a[i].tokens), head(b[i].tokens)) ? 1 : 0;
    }
    std::printf("%s %s: %zu of %zu outputs begin alike\n", layout_.c_str(), what.c_str(), alike,
                a.size());
    if (a.empty() || a.size() != b.size() || alike * 4 < a.size() * 3) failed_ = true;
  }
  // On rank 0: that prompts of the second half were found in the cache, and changed nothing. Chunks
  // of 16 tokens end where blocks do and are computed by kernels whose results for a row depend on
  // that row alone: what is left of a prompt is computed as it was the first time.
  void expect_cached(const std::vector<Ended>& twice, const std::string& what) {
    if (environment_.rank() != 0) return;
    const auto half = twice.begin() + static_cast<std::ptrdiff_t>(twice.size() / 2);
    size_t cached = 0, before = 0;
    for (auto one = twice.begin(); one != half; ++one) before += one->cached > 0;
    for (auto one = half; one != twice.end(); ++one) cached += one->cached >= 64;
    expect_same({twice.begin(), half}, {half, twice.end()}, what);
    std::printf("%s %s: %zu of %td from the cache\n", layout_.c_str(), what.c_str(), cached,
                twice.end() - half);
    if (before != 0 || cached != twice.size() / 2) failed_ = true;
  }
  void expect_whole(const std::vector<Ended>& ends, const std::vector<Sequence>& sequences,
                    const std::string& what) {
    if (environment_.rank() != 0) return;
    size_t wrong = 0, tokens = 0;
    for (size_t i = 0; i < ends.size(); ++i) {
      tokens += ends[i].tokens.size();
      const auto most = static_cast<size_t>(sequences[i].sampling.max_tokens);
      const bool length = ends[i].finish == FinishReason::kLength && ends[i].tokens.size() == most;
      const bool stop = ends[i].finish == FinishReason::kStop && ends[i].tokens.size() <= most;
      wrong += !length && !stop;
    }
    std::printf("%s %s: %zu outputs of %zu tokens, %zu wrong\n", layout_.c_str(), what.c_str(),
                ends.size(), tokens, wrong);
    if (wrong > 0 || ends.size() != sequences.size()) failed_ = true;
  }
  bool failed() const { return failed_; }

 private:
  const MpiEnvironment& environment_;
  std::string layout_;
  bool failed_ = false;
};

int run(int argc, char** argv) {
  MpiEnvironment environment(&argc, &argv);
  log::init("warn", "rank " + std::to_string(environment.rank()));
  if (!every_rank_has_a_gpu(environment)) return 77;
  const int ranks = environment.size();
  std::vector<std::string> layouts;
  for (int tensor = ranks; tensor >= 1; tensor /= 2) {
    layouts.push_back("tensor=" + std::to_string(tensor) +
                      ",pipeline=" + std::to_string(ranks / tensor));
  }
  bool failed = false;
  const bool brief = std::getenv("TRIREME_TEST_BRIEF") != nullptr;
  for (const std::string& layout : layouts) {
    Runs runs(environment, layout);
    // Of gemma3 and mistral some layers, or all, have a window.
    for (const std::string fixture : {"llama-plain", "qwen3-bf16", "gemma3", "mistral"}) {
      if (brief && fixture != "llama-plain") continue;
      const auto some = brief ? requests(4, 16, 4) : requests(32, 16, 40);
      const auto base = runs.run(fixture, {"off", "auto"}, some, false);
      runs.expect_whole(base, some, fixture);
      runs.expect_same(base, runs.run(fixture, {"on", "auto"}, some, false),
                       fixture + ", look-ahead");
      // Briefly: not over emulated nodes, between which only the communicator makes sums.
      const bool one_way = layout.find("tensor=1") != std::string::npos ||
                           (brief && layout.find("pipeline=1") != std::string::npos);
      if (ranks > 1 && !one_way) {
        const auto shot = runs.run(fixture, {"off", "one-shot"}, some, false);
        runs.expect_whole(shot, some, fixture + ", one-shot");
        runs.expect_same(shot, runs.run(fixture, {"on", "one-shot"}, some, false),
                         fixture + ", one-shot with look-ahead");
        for (const std::string way : {"two-shots", "communicator"}) {
          const auto other = runs.run(fixture, {"off", way}, some, false);
          runs.expect_whole(other, some, fixture + ", " + way);
          runs.expect_alike(shot, other, fixture + ", one-shot and " + way);
        }
      }
      std::vector<Sequence> twice;
      const int prompts = brief ? 2 : 16;
      for (int i = 0; i < prompts; ++i) {
        twice.push_back(random_sequence(static_cast<uint64_t>(i), kVocab, 70 + i * 5,
                                        brief ? 4 : 12, i >= prompts / 2));
      }
      for (int i = 0; i < prompts; ++i) twice.push_back(twice[static_cast<size_t>(i)]);
      runs.expect_cached(runs.run(fixture, {"off", "auto", 16}, twice, false),
                         fixture + ", prefix cache");
      const auto many = brief ? requests(24, 90, 6) : requests(160, 90, 40);
      const std::string at_once = ", " + std::to_string(many.size()) + " at once";
      const auto plain = runs.run(fixture, {"off", "auto"}, many, true);
      const auto ahead = runs.run(fixture, {"on", "auto"}, many, true);
      runs.expect_whole(plain, many, fixture + at_once);
      runs.expect_whole(ahead, many, fixture + at_once + " with look-ahead");
      runs.expect_alike(plain, ahead, fixture + at_once);
    }
    failed = failed || runs.failed();
  }
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  try {
    return trireme::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    trireme::MpiEnvironment::abort(1);
  }
}
