#include "runtime/worker_slots.h"

#include <algorithm>

#include "base/error.h"

namespace trireme {

WorkerSlots::WorkerSlots(int32_t slots, size_t groups, int32_t block_size, Part vocab)
    : slots_(static_cast<size_t>(slots)), groups_(groups), block_size_(block_size), vocab_(vocab) {
  for (WorkerSlot& slot : slots_) slot.tables.resize(groups);
}

void WorkerSlots::check(const StepPlan& plan) const {
  const auto require = [&plan](bool valid, const char* what, int64_t value) {
    if (!valid) fail(ErrorCode::kInternal, "plan of step {}: {} ({})", plan.step, what, value);
  };
  for (const SlotInit& init : plan.admitted) {
    require(init.slot >= 0 && static_cast<size_t>(init.slot) < slots_.size(), "no such slot",
            init.slot);
    require(init.blocks.size() == groups_, "wrong number of KV groups",
            static_cast<int64_t>(init.blocks.size()));
  }
  const auto tokens = static_cast<int64_t>(plan.tokens.size());
  const auto blocks = static_cast<int64_t>(plan.blocks.size());
  for (const PlanRow& row : plan.rows) {
    require(row.slot >= 0 && static_cast<size_t>(row.slot) < slots_.size(), "no such slot",
            row.slot);
    require(row.count > 0 && row.position >= 0, "empty row of slot", row.slot);
    require(row.token_begin >= 0 && int64_t{row.token_begin} + row.count <= tokens,
            "tokens out of range in slot", row.slot);
    require(row.block_begin >= 0 && row.block_count >= 0 &&
                row.block_begin + row.block_count * static_cast<int64_t>(groups_) <= blocks,
            "blocks out of range in slot", row.slot);
  }
}

void WorkerSlots::apply(const StepPlan& plan) {
  check(plan);
  if (plan.epoch != epoch_) {
    for (WorkerSlot& slot : slots_) slot.taken = false;
    epoch_ = plan.epoch;
  }
  for (const SlotInit& init : plan.admitted) admit(init);
  for (const PlanRow& row : plan.rows) extend(plan, row);
}

void WorkerSlots::admit(const SlotInit& init) {
  WorkerSlot& slot = slots_[static_cast<size_t>(init.slot)];
  slot.taken = true;
  slot.admission = ++admissions_;
  slot.output_index = init.output_index;
  slot.prompt_tokens = init.prompt_tokens;
  slot.sampling = init.sampling;
  for (size_t g = 0; g < groups_; ++g) slot.tables[g] = init.blocks[g];
  slot.counts.clear();
  slot.counted = 0;
  slot.newest = slot.pending = slot.next = -1;
  for (const int32_t token : init.history) count(slot, slot.counted, token);
}

void WorkerSlots::sampled(SlotId id, int32_t position, int32_t token) {
  WorkerSlot& slot = slots_[static_cast<size_t>(id)];
  if (slot.pending == position) slot.pending = -1;
  slot.newest = token;
  if (slot.sampling.needs_counts()) count(slot, position, token);
}

void WorkerSlots::queued(SlotId id, int32_t position, bool on_device) {
  WorkerSlot& slot = slots_[static_cast<size_t>(id)];
  slot.pending = position;
  slot.pending_on_device = on_device;
}

void WorkerSlots::count(WorkerSlot& slot, int32_t position, int32_t token) {
  if (position < slot.counted) return;
  slot.counted = position + 1;
  if (token < vocab_.begin || token >= vocab_.end()) return;
  slot.counts.add(token, position >= slot.prompt_tokens);
}

void WorkerSlots::extend(const StepPlan& plan, const PlanRow& row) {
  WorkerSlot& slot = slots_[static_cast<size_t>(row.slot)];
  if (!slot.taken)
    fail(ErrorCode::kInternal, "plan of step {}: slot {} is empty", plan.step, row.slot);
  const int32_t* blocks = plan.blocks.data() + row.block_begin;
  for (std::vector<int32_t>& table : slot.tables) {
    table.insert(table.end(), blocks, blocks + row.block_count);
    blocks += row.block_count;
    if (static_cast<int64_t>(table.size()) * block_size_ < int64_t{row.position} + row.count) {
      fail(ErrorCode::kInternal, "plan of step {}: slot {} has {} blocks for {} tokens", plan.step,
           row.slot, table.size(), row.position + row.count);
    }
  }
  const std::span tokens =
      std::span(plan.tokens)
          .subspan(static_cast<size_t>(row.token_begin), static_cast<size_t>(row.count));
  const bool open = std::find(tokens.begin(), tokens.end(), kSampled) != tokens.end();
  if (open && (row.count > 1 || slot.next != row.position)) {
    fail(ErrorCode::kInternal, "plan of step {}: slot {} has sampled no token for position {}",
         plan.step, row.slot, row.position);
  }
  slot.next = row.sample ? row.position + row.count : -1;
  if (!slot.sampling.needs_counts() || open) return;
  for (int32_t i = 0; i < row.count; ++i) {
    count(slot, row.position + i, tokens[static_cast<size_t>(i)]);
  }
}

}  // namespace trireme
