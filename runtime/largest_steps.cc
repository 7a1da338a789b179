#include "runtime/largest_steps.h"

#include <algorithm>
#include <utility>

namespace trireme {
namespace {

class Plans {
 public:
  Plans(const SchedulerConfig& config, const ModelConfig& model, size_t kv_groups,
        int32_t block_size)
      : config_(config),
        vocab_(static_cast<int32_t>(model.vocab)),
        groups_(kv_groups),
        block_size_(block_size),
        rows_(most_decode_rows(config)) {}

  int32_t most_rows() const { return rows_; }

  // `rows` sequences of one token each, which decode their second.
  void decode(int32_t rows, const SamplingParams& sampling) {
    StepPlan& plan = begin();
    for (int32_t slot = 0; slot < rows; ++slot) add(plan, slot, 1, 1, 1, sampling);
  }

  // Prompts of `tokens` together, as many as it takes. (A row of one token would be a decode row,
  // which comes first in a step.)
  void prompts(int32_t tokens, const SamplingParams& sampling) {
    const int32_t chunk = std::min(config_.max_chunk, config_.max_context);
    StepPlan& plan = begin();
    for (int32_t slot = 0; slot < rows_ && tokens > 1; ++slot) {
      const int32_t count = std::min(tokens, chunk);
      add(plan, slot, 0, count, count, sampling);
      tokens -= count;
    }
  }

  std::vector<StepPlan> take() { return std::move(plans_); }

 private:
  StepPlan& begin() {
    plans_.emplace_back();
    return plans_.back();
  }

  void add(StepPlan& plan, SlotId slot, int32_t position, int32_t count, int32_t prompt,
           const SamplingParams& sampling) {
    SlotInit init;
    init.slot = slot;
    init.prompt_tokens = prompt;
    init.sampling = sampling;
    const int32_t blocks = (position + count + block_size_ - 1) / block_size_;
    init.blocks.assign(groups_, std::vector<int32_t>(static_cast<size_t>(blocks), 0));
    if (sampling.needs_counts()) {
      for (int32_t i = 0; i < prompt; ++i) init.history.push_back(token(slot, i));
    }
    plan.admitted.push_back(std::move(init));
    PlanRow row;
    row.slot = slot;
    row.position = position;
    row.count = count;
    row.token_begin = static_cast<int32_t>(plan.tokens.size());
    row.sample = true;
    row.prompt_logprobs = sampling.prompt_logprobs >= 0;
    plan.rows.push_back(row);
    for (int32_t i = 0; i < count; ++i) plan.tokens.push_back(token(slot, position + i));
  }

  int32_t token(SlotId slot, int32_t position) const { return (slot * 31 + position) % vocab_; }

  const SchedulerConfig& config_;
  int32_t vocab_;
  size_t groups_;
  int32_t block_size_;
  int32_t rows_;
  std::vector<StepPlan> plans_;
};

// `most` and below it every power of two and the three quarters between, above `least`: a backend
// chooses its algorithms by classes of sizes no finer than that.
std::vector<int32_t> size_classes(int32_t most, int32_t least) {
  std::vector<int32_t> sizes{most};
  int32_t power = 1;
  while (power <= most / 2) power *= 2;
  for (; power / 2 * 3 > least; power /= 2) {
    for (const int32_t size : {power / 2 * 3, power}) {
      if (size < most && size > least) sizes.push_back(size);
    }
  }
  return sizes;
}

}  // namespace

int32_t most_decode_rows(const SchedulerConfig& config) {
  return std::min({config.max_rows, slot_count(config), config.token_budget});
}

std::vector<int32_t> recorded_sizes(const Backend& backend, int32_t most) {
  std::vector<int32_t> sizes;
  const int64_t last = std::min<int64_t>(backend.most_recorded_rows(), most);
  for (int64_t rows = 1; rows <= last; rows = sizes.back() + 1) {
    sizes.push_back(static_cast<int32_t>(std::min(backend.padded_rows(rows), last)));
  }
  return sizes;
}

std::vector<StepPlan> largest_steps(const SchedulerConfig& config, const ModelConfig& model,
                                    size_t kv_groups, int32_t block_size,
                                    const std::vector<int32_t>& recorded) {
  Plans plans(config, model, kv_groups, block_size);
  SamplingParams greedy;
  greedy.temperature = 0.0f;
  const int32_t most_recorded = recorded.empty() ? 0 : recorded.back();
  for (const int32_t tokens : size_classes(config.token_budget, std::max(most_recorded, 1))) {
    plans.prompts(tokens, greedy);
  }
  if (plans.most_rows() > most_recorded) plans.decode(plans.most_rows(), greedy);
  for (const int32_t rows : recorded) {
    for (int time = 0; time < 2; ++time) plans.decode(rows, greedy);
  }
  SamplingParams costly;
  costly.top_p = 0.95f;
  costly.repetition_penalty = 1.1f;
  costly.logprobs = 20;
  plans.decode(plans.most_rows(), costly);
  SamplingParams scored = greedy;
  scored.prompt_logprobs = 20;
  plans.prompts(std::min<int32_t>(config.token_budget, 512), scored);
  return plans.take();
}

void run_largest_steps(Worker& worker, const std::vector<StepPlan>& plans) {
  for (const StepPlan& plan : plans) worker.try_step(plan);
}

}  // namespace trireme
