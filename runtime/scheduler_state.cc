#include "runtime/scheduler_state.h"

#include <algorithm>

namespace trireme {

Entry::Entry(Sequence from, const PrefixChain& chain, int32_t max_context)
    : sequence(std::move(from)), chain(chain) {
  const SamplingParams& sampling = sequence.sampling;
  id = sequence.id;
  size = sequence.size();
  newest = sequence.tokens.back();
  max_size = static_cast<int32_t>(
      std::min<int64_t>(max_context, int64_t{sequence.prompt_tokens} + sampling.max_tokens));
  stops_above = static_cast<int32_t>(
      std::min<int64_t>(max_context, int64_t{sequence.prompt_tokens} + sampling.min_tokens));
  std::copy_n(sampling.stop_ids.begin(), std::min(stops.size(), sampling.stop_ids.size()),
              stops.begin());
  many_stops = sampling.stop_ids.size() > stops.size();
  has_siblings = sequence.group != 0;
  wants_prompt_logprobs = sampling.prompt_logprobs >= 0;
}

const std::vector<int32_t>& Entry::tokens() {
  sequence.tokens.insert(sequence.tokens.end(), tail.begin(), tail.begin() + tail_size);
  tail_size = 0;
  return sequence.tokens;
}

void Entry::reserve(const KvCachePool& pool) {
  constexpr int32_t kAhead = 1024;  // tokens; beyond, vectors grow as vectors do
  const int32_t most = std::max(size, std::min(max_size, size + kAhead));
  const auto blocks = static_cast<size_t>(pool.blocks_for(most));
  sequence.tokens.reserve(most);
  chain.reserve(blocks);
  for (BlockTable& table : tables) table.blocks.reserve(blocks);
}

FinishReason Entry::finish() const {
  if (size > stops_above && newest >= 0) {
    bool stop = std::find(stops.begin(), stops.end(), newest) != stops.end();
    if (many_stops && !stop) {
      const std::vector<int32_t>& ids = sequence.sampling.stop_ids;
      stop = std::find(ids.begin(), ids.end(), newest) != ids.end();
    }
    if (stop) return FinishReason::kStop;
  }
  return size >= max_size ? FinishReason::kLength : FinishReason::kNone;
}

EntrySlab::Pointer EntrySlab::make(Sequence sequence, const PrefixChain& chain,
                                   int32_t max_context) {
  if (free_.empty()) {
    Room* chunk = chunks_.emplace_back(std::make_unique_for_overwrite<Room[]>(kChunk)).get();
    for (size_t i = kChunk; i > 0; --i) free_.push_back(chunk + i - 1);
  }
  Entry* entry = new (free_.back()) Entry(std::move(sequence), chain, max_context);
  free_.pop_back();
  return Pointer(entry, Delete{this});
}

SchedulerState::SchedulerState(const SchedulerConfig& config, const KvPoolConfig& pool_config)
    : config(config), pool(pool_config), slots(slot_count(config)) {
  for (SlotId slot = slots - 1; slot >= 0; --slot) free_slots.push_back(slot);
}

void SchedulerState::release_blocks(Entry& entry) {
  if (!entry.running()) return;
  for (size_t g = 0; g < entry.tables.size(); ++g) {
    BlockTable& table = entry.tables[g];
    const auto length = static_cast<int64_t>(table.blocks.size());
    kv_tokens_used -= entry.computed - int64_t{table.live} * pool.block_size();
    kv_tokens_allocated -= (length - table.live) * pool.block_size();
    // The end of a prefix is useless without its beginning, so it is to be evicted first.
    for (auto i = static_cast<int32_t>(table.blocks.size()) - 1; i >= table.live; --i) {
      pool.group(g).release(table.blocks[i]);
    }
    table.blocks.clear();
    table.live = 0;
  }
  entry.computed = 0;
  entry.capacity = 0;
  free_slots.push_back(entry.slot);
  entry.slot = -1;
  --running_count;
}

void SchedulerState::preempt(Entry& entry) {
  release_blocks(entry);
  entry.retry_at.clear();
  enqueue(entry);
  ++preemptions;
}

void SchedulerState::retire(Entry& entry) {
  leave_siblings(entry);
  release_blocks(entry);
  if (!entry.admitted) --queued;
  const auto found = entries.find(entry.id);
  retired.push_back(std::move(found->second));
  entries.erase(found);
}

void SchedulerState::compact() {
  std::erase_if(running, [](const Entry* entry) { return !entry->running(); });
  retired.clear();
}

void SchedulerState::enqueue(Entry& entry) {
  entry.phase = Phase::kWaiting;
  waiting.insert(&entry);
  waiting_tokens += entry.size;
}

void SchedulerState::dequeue(Entry& entry) {
  waiting.erase(&entry);
  waiting_tokens -= entry.size;
}

bool SchedulerState::may_hit(const Entry& entry) const {
  return pool.config().prefix_cache && entry.size > pool.block_size() &&
         !(entry.wants_prompt_logprobs && entry.reported_to < entry.sequence.prompt_tokens);
}

void SchedulerState::park_or_enqueue(Entry& entry) {
  if (!entry.has_siblings || !may_hit(entry)) return enqueue(entry);
  Siblings& group = siblings[entry.sequence.group];
  if (group.leader == nullptr) {
    group.leader = &entry;
    return enqueue(entry);
  }
  entry.phase = Phase::kParked;
  group.parked.push_back(&entry);
}

void SchedulerState::release_siblings(Entry& leader) {
  const auto found = siblings.find(leader.sequence.group);
  if (found == siblings.end() || found->second.leader != &leader) return;
  const std::vector<Entry*> parked = std::move(found->second.parked);
  siblings.erase(found);
  for (Entry* entry : parked) enqueue(*entry);
}

void SchedulerState::leave_siblings(Entry& entry) {
  const auto found = siblings.find(entry.sequence.group);
  if (found == siblings.end()) return;
  Siblings& group = found->second;
  if (group.leader != &entry) {
    std::erase(group.parked, &entry);
  } else if (group.parked.empty()) {
    siblings.erase(found);
  } else {
    group.leader = group.parked.front();
    group.parked.erase(group.parked.begin());
    enqueue(*group.leader);
  }
}

}  // namespace trireme
