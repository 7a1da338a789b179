// A simulated world for the scheduler's tests: a worker that mirrors slots from encoded plans and
// keeps, in place of keys and values, what each position of each block stands for.
//
// The content of a position is a hash of its salt, its token and all tokens before it; the sampled
// token is a function of the content read. So a block that is shared wrongly, reused too early,
// written twice or missing shows as wrong content, and the output of a sequence cannot be right
// by accident.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "runtime/scheduler.h"

namespace trireme::sim {

constexpr int32_t kVocab = 5;  // small: prefixes meet often

inline void require(bool valid, const std::string& what) {
  if (!valid) throw std::runtime_error(what);
}

inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9e3779b97f4a7c15u + b + 0x632be59bd9b4e019u;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  return x ^ (x >> 32);
}

// Content of the position of `token` after a position with content `before`.
inline uint64_t content_after(uint64_t before, int32_t token) { return mix(before, token + 1); }
inline uint64_t content_root(uint64_t salt) { return mix(salt, 0x5a17); }

// The sampler: bans stop ids before min_tokens, as the real one does.
inline int32_t sample(uint64_t content, const SamplingParams& params, int32_t generated) {
  for (uint64_t draw = 0;; ++draw) {
    const auto token = static_cast<int32_t>(mix(content ^ params.seed, draw) % kVocab);
    const auto& stops = params.stop_ids;
    const bool stop = std::find(stops.begin(), stops.end(), token) != stops.end();
    if (!stop || generated >= params.min_tokens) return token;
    if (draw > 64) return kVocab;  // every token is a stop id: one that is none
  }
}

// What a sequence must become: computed alone, without a scheduler.
struct Truth {
  Sequence given;                 // as add() gets it
  std::vector<int32_t> tokens;    // prompt and all generated tokens
  std::vector<uint64_t> content;  // per position of `tokens`
  FinishReason finish = FinishReason::kNone;
};

inline Truth run_alone(const Sequence& sequence, int32_t max_context) {
  Truth truth{sequence, sequence.tokens, {}, FinishReason::kNone};
  const SamplingParams& params = sequence.sampling;
  uint64_t content = content_root(sequence.prefix_salt);
  for (const int32_t token : truth.tokens) {
    truth.content.push_back(content = content_after(content, token));
  }
  while (truth.finish == FinishReason::kNone) {
    const auto size = static_cast<int32_t>(truth.tokens.size());
    const int32_t generated = size - sequence.prompt_tokens;
    const bool stopped =
        generated > 0 && generated - 1 >= params.min_tokens &&
        std::count(params.stop_ids.begin(), params.stop_ids.end(), truth.tokens.back()) > 0;
    if (stopped) {
      truth.finish = FinishReason::kStop;
    } else if (generated >= params.max_tokens || size >= max_context) {
      truth.finish = FinishReason::kLength;
    } else {
      truth.tokens.push_back(sample(content, params, generated));
      truth.content.push_back(content = content_after(content, truth.tokens.back()));
    }
  }
  return truth;
}

// Executes plans in order. Sequences are recognized by their seed, which is their id.
class Worker {
 public:
  Worker(const SchedulerConfig& config, const KvPoolConfig& pool) : config_(config), pool_(pool) {
    for (const int32_t blocks : pool.blocks) {
      cache_.emplace_back(static_cast<size_t>(blocks) * pool.block_size, 0);
      written_.emplace_back(static_cast<size_t>(blocks) * pool.block_size, 0);
    }
  }

  std::map<uint64_t, Truth> truths;
  std::vector<SequenceId> admitted;  // in order of admission, again after preemption
  int64_t rows_ahead = 0;            // that left their token open

  // The result of the oldest plan executed was applied.
  void applied() { pending_.pop_front(); }

  std::vector<std::byte> execute(const std::vector<std::byte>& bytes) {
    StepPlan plan;
    decode(bytes, plan);
    if (plan.epoch != epoch_) {
      slots_.clear();
      pending_.clear();
      for (auto& group : cache_) std::fill(group.begin(), group.end(), 0);
      epoch_ = plan.epoch;
    }
    require(plan.step == ++step_, "steps are not consecutive");
    for (const SlotInit& init : plan.admitted) take_slot(init);
    check_limits(plan);
    Pending pending;
    for (const PlanRow& row : plan.rows) write(plan, row, pending);
    pending_.push_back(std::move(pending));
    StepResult result{plan.step, {}};
    for (const PlanRow& row : plan.rows) read(plan, row, result);
    std::vector<std::byte> out;
    encode(result, out);
    return out;
  }

 private:
  struct Slot {
    Truth* truth = nullptr;
    SamplingParams sampling;
    std::vector<std::vector<int32_t>> tables;
    int32_t computed = 0;
    bool sampled = false;
    int32_t newest = -1;           // the token sampled last
    int32_t newest_position = -1;  // where it belongs
  };

  // What an executed plan names until its result is applied.
  struct Pending {
    std::set<SlotId> slots;
    // (group, block) that it writes. Not of windowed groups: what is behind the window may be
    // written again, since plans are executed in order.
    std::set<std::pair<int32_t, int32_t>> blocks;
  };

  void take_slot(const SlotInit& init) {
    require(init.slot < slot_count(config_), "slot id is too large");
    for (const Pending& plan : pending_) {
      require(!plan.slots.contains(init.slot), "a slot is taken while its rows are in flight");
    }
    const auto found = truths.find(init.sampling.seed);
    require(found != truths.end(), "an unknown sequence is admitted");
    Truth& truth = found->second;
    require(init.prompt_tokens == truth.given.prompt_tokens, "prompt_tokens");
    require(init.output_index == truth.given.output_index, "output_index");
    require(init.blocks.size() == cache_.size(), "a table for each group");
    for (const auto& table : init.blocks) {
      require(table.size() == init.blocks[0].size(), "tables differ in length");
    }
    slots_[init.slot] = {&truth, init.sampling, init.blocks,
                         static_cast<int32_t>(init.blocks[0].size()) * pool_.block_size, false};
    if (init.sampling.needs_counts()) {
      require(std::equal(init.history.begin(), init.history.end(), truth.tokens.begin()) &&
                  init.history.size() >= truth.given.tokens.size(),
              "history");
    } else {
      require(init.history.empty(), "history without need");
    }
    admitted.push_back(truth.given.id);
  }

  void check_limits(const StepPlan& plan) {
    int32_t tokens = 0;
    bool prefill_seen = false;
    std::set<SlotId> seen;
    require(!plan.rows.empty(), "an empty plan");
    for (const PlanRow& row : plan.rows) {
      require(slots_.contains(row.slot), "a row of an empty slot");
      require(seen.insert(row.slot).second, "two rows of one slot");
      const bool decode = slots_[row.slot].sampled;
      require(!decode || row.count == 1, "a decode row of several tokens");
      require(!(decode && prefill_seen), "a decode row after prefill rows");
      prefill_seen = prefill_seen || !decode;
      require(row.count <= config_.max_chunk, "max_chunk");
      tokens += row.count;
    }
    require(tokens <= config_.token_budget, "token_budget");
    require(static_cast<int32_t>(plan.rows.size()) <= config_.max_rows, "max_rows");
  }

  uint64_t& cell(std::vector<std::vector<uint64_t>>& of, const Slot& slot, size_t g, int32_t at) {
    const int32_t index = at / pool_.block_size;
    require(index < static_cast<int32_t>(slot.tables[g].size()), "a block is missing");
    const int32_t block = slot.tables[g][index];
    require(block >= 0 && block < pool_.blocks[g], "no block where one is needed");
    return of[g][static_cast<size_t>(block) * pool_.block_size + at % pool_.block_size];
  }

  int32_t token_of(const Slot& slot, const StepPlan& plan, const PlanRow& row, int32_t i) {
    const int32_t token = plan.tokens[row.token_begin + i];
    if (token != kSampled) return token;
    require(config_.look_ahead, "a token is left open without look_ahead");
    require(row.count == 1 && slot.newest_position == row.position, "no such token was sampled");
    ++rows_ahead;
    return slot.newest;
  }

  void write(const StepPlan& plan, const PlanRow& row, Pending& pending) {
    Slot& slot = slots_[row.slot];
    const auto groups = static_cast<int32_t>(cache_.size());
    require(row.position == slot.computed, "a row does not go on where the slot ended");
    require(row.block_begin + row.block_count * groups <= static_cast<int32_t>(plan.blocks.size()),
            "blocks of a row");
    for (int32_t g = 0; g < groups; ++g) {
      const auto from = plan.blocks.begin() + row.block_begin + g * row.block_count;
      slot.tables[g].insert(slot.tables[g].end(), from, from + row.block_count);
      for (const Pending& before : pending_) {
        for (auto block = from; block < from + row.block_count; ++block) {
          require(!before.blocks.contains({g, *block}), "a block is taken that is being written");
        }
      }
    }
    for (int32_t i = 0; i < row.count; ++i) {
      const int32_t at = row.position + i;
      require(at < static_cast<int32_t>(slot.truth->tokens.size()), "more tokens than there are");
      require(at < final_kv_tokens(slot.truth->given, config_.max_context), "beyond the limits");
      require(token_of(slot, plan, row, i) == slot.truth->tokens[at], "a wrong token");
      for (int32_t g = 0; g < groups; ++g) {
        cell(cache_, slot, g, at) = slot.truth->content[at];
        if (pool_.groups[g].window == 0) {
          pending.blocks.insert({g, slot.tables[g][at / pool_.block_size]});
        }
        uint64_t& stamp = cell(written_, slot, g, at);
        require(stamp != plan.step, "two rows write one position");
        stamp = plan.step;
      }
    }
    slot.computed += row.count;
    pending.slots.insert(row.slot);
  }

  void read(const StepPlan& plan, const PlanRow& row, StepResult& result) {
    Slot& slot = slots_[row.slot];
    const int32_t end = row.position + row.count;
    uint64_t last = 0;
    for (size_t g = 0; g < cache_.size(); ++g) {
      const int32_t window = pool_.groups[g].window;
      const int32_t first = window == 0 ? 0 : std::max(0, row.position - window + 1);
      for (int32_t at = first; at < end; ++at) {
        last = cell(cache_, slot, g, at);
        require(last == slot.truth->content[at],
                "wrong content: sequence " + std::to_string(slot.truth->given.id) + " group " +
                    std::to_string(g) + " position " + std::to_string(at) + " step " +
                    std::to_string(plan.step));
      }
    }
    if (!row.sample && !row.prompt_logprobs) return;
    RowResult& out = result.rows.emplace_back();
    out.slot = row.slot;
    if (row.sample) {
      out.token = sample(last, slot.sampling, end - slot.truth->given.prompt_tokens);
      slot.sampled = true;
      slot.newest = out.token;
      slot.newest_position = end;
    }
    if (!row.prompt_logprobs) return;
    for (int32_t i = 0; i < row.count; ++i) {
      const int32_t target =
          i + 1 < row.count ? plan.tokens[row.token_begin + i + 1] : row.next_token;
      if (target >= 0) out.prompt.push_back({target, 0.0f});
    }
  }

  SchedulerConfig config_;
  KvPoolConfig pool_;
  std::map<SlotId, Slot> slots_;
  std::vector<std::vector<uint64_t>> cache_;    // [group][block * block_size + offset]
  std::vector<std::vector<uint64_t>> written_;  // the step that wrote it last
  std::deque<Pending> pending_;
  uint64_t epoch_ = 0;
  uint64_t step_ = 0;
};

}  // namespace trireme::sim
