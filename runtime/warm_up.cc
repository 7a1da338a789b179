#include "runtime/warm_up.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <vector>

#include "base/log.h"

namespace trireme {
namespace {

constexpr int kPasses = 3;  // a step runs as it is, is recorded, and is replayed

class WarmUp {
 public:
  WarmUp(Worker& worker, Backend& backend, const WarmUpSizes& sizes)
      : worker_(worker), backend_(backend), sizes_(sizes) {
    worker_.omit_edges(true);
  }
  ~WarmUp() { worker_.omit_edges(false); }
  WarmUp(const WarmUp&) = delete;
  WarmUp& operator=(const WarmUp&) = delete;

  void prefill(int32_t tokens) {
    begin();
    for (int32_t left = std::min(tokens, sizes_.max_tokens), slot = 0;
         left > 0 && slot < sizes_.slots; ++slot) {
      const int32_t count = std::min(left, sizes_.max_chunk);
      add(slot, count, greedy());
      left -= count;
    }
    run();
  }
  void decode(int32_t rows) {
    begin();
    for (int32_t slot = 0; slot < rows; ++slot) add(slot, 1, greedy());
    run();
  }
  // Rows that take every path of the sampler.
  void sample(int32_t rows) {
    begin();
    for (int32_t slot = 0; slot < rows; ++slot) {
      SamplingParams params;
      params.temperature = 1.0f;
      params.seed = static_cast<uint64_t>(slot);
      if (slot % 4 == 1) params.top_p = 0.95f;
      if (slot % 4 == 2) params.top_k = 50;
      if (slot % 4 == 3) params.min_p = 0.05f;
      if (slot % 8 == 0) params.logprobs = 5;
      if (slot % 3 == 0) params.repetition_penalty = 1.1f;
      add(slot, 1, params);
    }
    run();
  }

 private:
  static SamplingParams greedy() {
    SamplingParams params;
    params.temperature = 0.0f;
    return params;
  }
  void begin() {
    plan_.clear();
    plan_.epoch = kWarmUpStep;
    plan_.step = ++step_;
  }
  void add(int32_t slot, int32_t count, const SamplingParams& sampling) {
    SlotInit& init = plan_.admitted.emplace_back();
    init.slot = slot;
    init.prompt_tokens = count;
    init.sampling = sampling;
    init.blocks.resize(sizes_.kv_groups);
    PlanRow& row = plan_.rows.emplace_back();
    row.slot = slot;
    row.count = count;
    row.sample = true;
    row.token_begin = static_cast<int32_t>(plan_.tokens.size());
    for (int32_t i = 0; i < count; ++i) plan_.tokens.push_back((slot * 31 + i) % sizes_.vocab);
    row.block_begin = static_cast<int32_t>(plan_.blocks.size());
    row.block_count = (count + sizes_.block_size - 1) / sizes_.block_size;
    plan_.blocks.resize(plan_.blocks.size() +
                        static_cast<size_t>(row.block_count) * sizes_.kv_groups);
  }
  void run() {
    worker_.launch(plan_);
    if (worker_.samples()) worker_.finish(result_);
    backend_.synchronize();
  }

  Worker& worker_;
  Backend& backend_;
  const WarmUpSizes& sizes_;
  StepPlan plan_;
  StepResult result_;
  uint64_t step_ = kWarmUpStep;
};

// Seconds of the slowest rank.
template <typename Work>
double slowest(Communicator& host, const Work& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double> mine = std::chrono::steady_clock::now() - begin;
  return largest_of_ranks(host, mine.count());
}

int32_t most_decode_rows(const WarmUpSizes& sizes) {
  return std::min(sizes.slots, sizes.max_tokens);
}

}  // namespace

WarmUpSizes warm_up_sizes(const SchedulerConfig& scheduler, const KvPoolConfig& pool,
                          int64_t vocab) {
  WarmUpSizes sizes;
  sizes.max_tokens = scheduler.token_budget;
  sizes.max_chunk = std::min(scheduler.max_chunk, scheduler.max_context);
  sizes.slots = slot_count(scheduler);
  sizes.block_size = pool.block_size;
  sizes.kv_groups = pool.groups.size();
  sizes.vocab = static_cast<int32_t>(vocab);
  return sizes;
}

void warm_up_largest(Worker& worker, Backend& backend, const WarmUpSizes& sizes) {
  WarmUp steps(worker, backend, sizes);
  steps.prefill(sizes.max_tokens);
  const int32_t rows = most_decode_rows(sizes);
  for (int pass = 0; pass < kPasses; ++pass) steps.decode(rows);
  steps.sample(rows);
}

void warm_up_all_sizes(Worker& worker, Backend& backend, const WarmUpSizes& sizes) {
  WarmUp steps(worker, backend, sizes);
  // As products are told apart by the number of their rows: two sizes from one power of two to the
  // next.
  for (int32_t tokens = 32; tokens / 4 * 3 < sizes.max_tokens; tokens *= 2) {
    steps.prefill(tokens / 4 * 3);
    steps.prefill(tokens);
  }
  for (int32_t rows = 1; rows <= most_decode_rows(sizes); ++rows) {
    if (backend.padded_rows(rows) != rows && rows != most_decode_rows(sizes)) continue;
    for (int pass = 0; pass < kPasses; ++pass) steps.decode(rows);
  }
  steps.sample(1);
}

void tune_prefill_parts(Worker& worker, Backend& backend, const WarmUpSizes& sizes,
                        Communicator& host) {
  constexpr size_t kLayers = 4;
  constexpr int kTimes = 5;
  constexpr double kWorthwhile = 0.98;  // less is noise
  constexpr std::array<int, 4> kEighths{0, 3, 4, 5};
  Decoder& decoder = worker.decoder();
  if (!decoder.parts_are_open()) return;
  WarmUp steps(worker, backend, sizes);
  decoder.limit_layers(kLayers);
  std::vector<PrefillParts::Choice> choices;
  for (int32_t tokens = 512; tokens <= sizes.max_tokens; tokens *= 2) {
    // In turn, so that a clock that drifts is the same for all; the first round is not counted.
    std::array<double, kEighths.size()> least;
    least.fill(std::numeric_limits<double>::infinity());
    for (int round = 0; round <= kTimes; ++round) {
      for (size_t i = 0; i < kEighths.size(); ++i) {
        decoder.set_parts(PrefillParts({{0, kEighths[i], 0.0, 0.0}}));
        const double seconds = slowest(host, [&] { steps.prefill(tokens); });
        if (round > 0) least[i] = std::min(least[i], seconds);
      }
    }
    const auto best = std::min_element(least.begin() + 1, least.end());
    PrefillParts::Choice choice{tokens, 0, least[0], *best};
    if (*best < least[0] * kWorthwhile) {
      choice.eighths = kEighths[static_cast<size_t>(best - least.begin())];
    }
    choices.push_back(choice);
  }
  decoder.limit_layers(0);
  decoder.set_parts(PrefillParts(std::move(choices)));
  if (host.rank() != 0) return;
  for (const std::string& line : decoder.parts().describe()) log::debug("{}", line);
}

}  // namespace trireme
