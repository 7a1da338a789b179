#include "runtime/kv_cache_pool.h"

#include <algorithm>
#include <bit>

#include "base/error.h"

namespace trireme {
namespace {
constexpr int32_t kLookAhead = 6;          // blocks
constexpr int32_t kMaxBlockSize = 65'536;  // tokens; positions of a table fit int32_t with room
}  // namespace

KvGroupBlocks::KvGroupBlocks(int32_t blocks) : blocks_(blocks), free_(blocks) {
  for (int32_t i = 0; i < blocks; ++i) free_[i] = blocks - 1 - i;  // block 0 is taken first
  table_.resize(std::bit_ceil(static_cast<size_t>(blocks) * 2));
  mask_ = table_.size() - 1;
}

int32_t KvGroupBlocks::take() {
  int32_t block = kNone;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (oldest_ != kNone) {
    block = oldest_;
    remove_lru(block);
    erase_from_table(block);
  } else {
    return kNone;
  }
  blocks_[block].refs = 1;
  return block;
}

void KvGroupBlocks::retain(int32_t block) {
  if (blocks_[block].refs++ == 0) remove_lru(block);
}

void KvGroupBlocks::release(int32_t block) {
  Block& entry = blocks_[block];
  if (entry.refs <= 0) fail(ErrorCode::kInternal, "KV block {} is released twice", block);
  if (--entry.refs > 0) return;
  if (entry.findable) {
    append_lru(block);
  } else {
    free_.push_back(block);
  }
}

void KvGroupBlocks::publish(int32_t block, const PrefixHash& hash) {
  Block& entry = blocks_[block];
  if (entry.findable) return;
  size_t at = home(hash);
  for (; table_[at].block != kNone; at = next(at)) {
    if (holds(table_[at], hash)) return;
  }
  table_[at] = {static_cast<uint32_t>(hash.low), block};
  entry.hash = hash;
  entry.findable = true;
}

int32_t KvGroupBlocks::find(const PrefixHash& hash) const {
  for (size_t at = home(hash); table_[at].block != kNone; at = next(at)) {
    if (holds(table_[at], hash)) return table_[at].block;
  }
  return kNone;
}

void KvGroupBlocks::forget_prefixes() {
  while (oldest_ != kNone) {
    free_.push_back(oldest_);
    remove_lru(oldest_);
  }
  std::fill(table_.begin(), table_.end(), TableEntry{});
  for (Block& block : blocks_) block.findable = false;
}

void KvGroupBlocks::append_lru(int32_t block) {
  blocks_[block].previous = newest_;
  blocks_[block].next = kNone;
  (newest_ == kNone ? oldest_ : blocks_[newest_].next) = block;
  newest_ = block;
  ++cached_;
}

void KvGroupBlocks::remove_lru(int32_t block) {
  const Block& entry = blocks_[block];
  (entry.previous == kNone ? oldest_ : blocks_[entry.previous].next) = entry.next;
  (entry.next == kNone ? newest_ : blocks_[entry.next].previous) = entry.previous;
  --cached_;
}

// Deletes by moving later entries of the probe chain back (Knuth, TAOCP 6.4, algorithm R), so
// that look-ups never pass over tombstones.
void KvGroupBlocks::erase_from_table(int32_t block) {
  size_t hole = home(blocks_[block].hash);
  while (table_[hole].block != block) hole = next(hole);
  for (size_t at = next(hole); table_[at].block != kNone; at = next(at)) {
    const size_t wanted = table_[at].key & mask_;
    if (((at - wanted) & mask_) >= ((at - hole) & mask_)) {
      table_[hole] = table_[at];
      hole = at;
    }
  }
  table_[hole] = {};
  blocks_[block].findable = false;
}

void KvGroupBlocks::check(std::span<const int32_t> expected) const {
  const auto require = [](bool valid, const char* what, int32_t block) {
    if (!valid) fail(ErrorCode::kInternal, "KV block {}: {}", block, what);
  };
  std::vector<char> seen(blocks_.size(), 0);
  for (const int32_t block : free_) {
    require(blocks_[block].refs == 0 && !blocks_[block].findable, "free, yet in use", block);
    require(seen[block]++ == 0, "free twice", block);
  }
  int32_t listed = 0;
  for (int32_t block = oldest_; block != kNone; block = blocks_[block].next, ++listed) {
    require(blocks_[block].refs == 0 && blocks_[block].findable, "cached, yet in use", block);
    require(seen[block]++ == 0, "both free and cached", block);
  }
  require(listed == cached_, "the count of cached blocks is wrong", listed);
  int32_t findable = 0;
  for (int32_t block = 0; block < size(); ++block) {
    require(blocks_[block].refs == expected[block], "the reference count is wrong", block);
    require((blocks_[block].refs > 0) != (seen[block] > 0), "leaked", block);
    if (!blocks_[block].findable) continue;
    ++findable;
    require(find(blocks_[block].hash) == block, "its hash leads elsewhere", block);
  }
  const auto entries = std::count_if(table_.begin(), table_.end(),
                                     [](const TableEntry& e) { return e.block != kNone; });
  require(entries == findable, "the table holds other blocks than the findable ones", findable);
}

KvCachePool::KvCachePool(const KvPoolConfig& config) : config_(config) {
  if (config.block_size < 1 || config.block_size > kMaxBlockSize) {
    fail(ErrorCode::kInvalidArgument, "block_size: {} is not in [1, {}]", config.block_size,
         kMaxBlockSize);
  }
  if (config.groups.empty() || config.groups.size() != config.blocks.size()) {
    fail(ErrorCode::kInvalidArgument, "{} KV groups with {} block counts", config.groups.size(),
         config.blocks.size());
  }
  for (size_t g = 0; g < config.groups.size(); ++g) {
    if (config.groups[g].window < 0) {
      fail(ErrorCode::kInvalidArgument, "KV group {}: window {}: at least 0", g,
           config.groups[g].window);
    }
    if (config.blocks[g] < 1 || config.blocks[g] > (1 << 30)) {
      fail(ErrorCode::kInvalidArgument, "KV group {}: {} blocks: 1 to 2^30", g, config.blocks[g]);
    }
    groups_.emplace_back(config.blocks[g]);
  }
}

int32_t KvCachePool::first_needed(size_t group, int32_t position) const {
  const int32_t window = config_.groups[group].window;
  if (window == 0 || position < window) return 0;
  return (position - window + 1) / config_.block_size;
}

int32_t KvCachePool::blocks_to_finish(size_t group, int32_t tokens) const {
  const int32_t all = blocks_for(tokens);
  const int32_t window = config_.groups[group].window;
  // A window that begins at the last token of a block touches the most blocks.
  return window == 0 ? all : std::min(all, blocks_for(window - 1) + 1);
}

int32_t KvCachePool::blocks_to_take(size_t group, int32_t tokens, int32_t length,
                                    int32_t live) const {
  const int32_t rest = blocks_for(tokens) - length;
  if (rest <= 0) return 0;
  return std::clamp(blocks_to_finish(group, tokens) - (length - live), 1, rest);
}

PrefixMatch KvCachePool::match(PrefixChain& chain, std::span<const int32_t> tokens,
                               int32_t limit) const {
  // found[g][i]: the block of prefix i; run[g]: found without a gap, counted back from here.
  std::vector<std::vector<int32_t>> found(groups_.size());
  std::vector<int32_t> run(groups_.size(), 0);
  int32_t best = 0;
  for (int32_t i = 0; i < limit; ++i) {
    // Hash a few blocks ahead, so that the table's entry is there when it is looked up.
    const PrefixHash ahead = chain.at(std::min(i + kLookAhead, limit - 1), tokens);
    for (const KvGroupBlocks& group : groups_) group.prefetch(ahead);
    const PrefixHash hash = chain.at(i, tokens);
    bool usable = true;
    for (size_t g = 0; g < groups_.size(); ++g) {
      found[g].push_back(groups_[g].find(hash));
      run[g] = found[g].back() == KvGroupBlocks::kNone ? 0 : run[g] + 1;
      if (run[g] == 0 && config_.groups[g].window == 0) {
        limit = 0;  // a gap in a group without a window: nothing longer can match
      }
      usable = usable && run[g] >= i + 1 - first_needed(g, (i + 1) * config_.block_size);
    }
    if (usable) best = i + 1;
  }
  PrefixMatch match{best, std::move(found), std::vector<int32_t>(groups_.size(), 0)};
  for (size_t g = 0; g < groups_.size(); ++g) {
    match.tables[g].resize(best);
    const int32_t first = std::min(best, first_needed(g, best * config_.block_size));
    std::fill_n(match.tables[g].begin(), first, KvGroupBlocks::kNone);
    for (int32_t i = first; i < best; ++i) {
      match.unreferenced[g] += groups_[g].refs(match.tables[g][i]) == 0;
    }
  }
  return match;
}

void KvCachePool::count_query(int64_t queried, int64_t hit) {
  queried_tokens_ += queried;
  hit_tokens_ += hit;
}

KvPoolStats KvCachePool::stats() const {
  KvPoolStats stats;
  for (const KvGroupBlocks& group : groups_) {
    stats.blocks += group.size();
    stats.used += group.used();
    stats.cached += group.cached();
  }
  stats.hit_tokens = hit_tokens_;
  stats.queried_tokens = queried_tokens_;
  return stats;
}

}  // namespace trireme
