#include "runtime/kv_cache_pool.h"

#include <algorithm>
#include <bit>

#include "base/error.h"

namespace trireme {
namespace {
constexpr size_t kLookAhead = 12;          // look-ups
constexpr int64_t kBatch = 64;             // look-ups in one of several groups
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

size_t KvGroupBlocks::retain_run(std::span<const PrefixHash> hashes, std::vector<int32_t>& blocks) {
  // First the table's entry of a hash is fetched, some look-ups later the block that it names.
  const auto fetch_entry = [&](const PrefixHash& hash) { __builtin_prefetch(&table_[home(hash)]); };
  const auto fetch_block = [&](const PrefixHash& hash) {
    const int32_t block = table_[home(hash)].block;
    __builtin_prefetch(&blocks_[block == kNone ? 0 : block], 1);
  };
  const size_t count = hashes.size();
  for (size_t i = 0; i < std::min(count, 2 * kLookAhead); ++i) fetch_entry(hashes[i]);
  for (size_t i = 0; i < std::min(count, kLookAhead); ++i) fetch_block(hashes[i]);
  const size_t before = blocks.size();
  blocks.resize(before + count);
  int32_t* const out = blocks.data() + before;
  size_t found = 0;
  for (; found < count; ++found) {
    fetch_entry(hashes[std::min(found + 2 * kLookAhead, count - 1)]);
    fetch_block(hashes[std::min(found + kLookAhead, count - 1)]);
    const PrefixHash& hash = hashes[found];
    const TableEntry& entry = table_[home(hash)];
    const int32_t block = entry.block != kNone && holds(entry, hash) ? entry.block : find(hash);
    if (block == kNone) break;
    if (blocks_[block].refs++ == 0) remove_lru(block);
    out[found] = block;
  }
  blocks.resize(before + found);
  return found;
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
    (config.groups[g].window == 0 ? unwindowed_ : windowed_).push_back(g);
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

bool KvCachePool::look_up(PrefixLookup& lookup, PrefixChain& chain, std::span<const int32_t> tokens,
                          int32_t limit, int64_t& left) {
  lookup.tables.resize(groups_.size());
  if (lookup.complete) lookup.candidate = -1;
  lookup.complete = false;
  if (lookup.candidate < 0) {
    if (!walk(lookup, chain, tokens, limit, left)) return false;
    lookup.candidate = unwindowed_.empty() ? limit : lookup.walked;
  }
  if (!check_windows(lookup, chain, tokens, left)) return false;
  shorten(lookup, lookup.candidate);
  lookup.complete = true;
  for (const size_t g : windowed_) {
    const int32_t first = first_needed(g, lookup.candidate * config_.block_size);
    lookup.tables[g].assign(lookup.candidate, KvGroupBlocks::kNone);
    for (int32_t i = first; i < lookup.candidate; ++i) {
      lookup.tables[g][i] = groups_[g].find(chain.at(i, tokens));
    }
  }
  return true;
}

// Up to the first block that is missing in a group without a window: nothing longer can be usable.
bool KvCachePool::walk(PrefixLookup& lookup, PrefixChain& chain, std::span<const int32_t> tokens,
                       int32_t limit, int64_t& left) {
  if (unwindowed_.empty()) return true;
  const auto groups = static_cast<int64_t>(unwindowed_.size());
  while (lookup.walked < limit) {
    if (left <= 0) return false;
    int64_t wanted = std::min<int64_t>(limit - lookup.walked, (left - 1) / groups + 1);
    if (groups > 1) wanted = std::min<int64_t>(wanted, kBatch);
    const auto hashes = chain.range(lookup.walked, static_cast<int32_t>(wanted), tokens);
    size_t found = hashes.size();
    for (const size_t g : unwindowed_) {
      const size_t here = groups_[g].retain_run(hashes.first(found), lookup.tables[g]);
      left -= static_cast<int64_t>(here + (here < found));
      found = here;
    }
    lookup.walked += static_cast<int32_t>(found);
    shorten(lookup, lookup.walked);  // what an earlier group found and a later one did not
    if (found < hashes.size()) return true;
  }
  return true;
}

// Looks from the end of the candidate back to where its windows begin. A missing block rules out
// all candidates whose windows hold it, so the next one ends before it: no block is looked at
// twice.
bool KvCachePool::check_windows(PrefixLookup& lookup, PrefixChain& chain,
                                std::span<const int32_t> tokens, int64_t& left) const {
  int32_t& candidate = lookup.candidate;
  std::vector<int32_t> seen_from(groups_.size(), candidate);  // … to the candidate's end: all there
  for (size_t at = 0; at < windowed_.size();) {
    const size_t g = windowed_[at];
    const int32_t first = first_needed(g, candidate * config_.block_size);
    int32_t& from = seen_from[g];
    from = std::min(from, candidate);
    bool there = true;
    while (from > first && there) {
      --left;
      there = groups_[g].find(chain.at(from - 1, tokens)) != KvGroupBlocks::kNone;
      from -= there;
    }
    ++at;
    if (there) continue;
    candidate = from - 1;
    at = 0;
    if (left <= 0) return false;
  }
  return true;
}

int32_t KvCachePool::unclaimed(const PrefixLookup& lookup, size_t group) const {
  if (config_.groups[group].window == 0) return 0;
  const std::vector<int32_t>& table = lookup.tables[group];
  return static_cast<int32_t>(std::count_if(table.begin(), table.end(), [&](int32_t block) {
    return block != KvGroupBlocks::kNone && groups_[group].refs(block) == 0;
  }));
}

void KvCachePool::claim(PrefixLookup& lookup) {
  for (const size_t g : windowed_) {
    for (const int32_t block : lookup.tables[g]) {
      if (block != KvGroupBlocks::kNone) groups_[g].retain(block);
    }
  }
}

void KvCachePool::shorten(PrefixLookup& lookup, int32_t blocks) {
  for (const size_t g : unwindowed_) {
    std::vector<int32_t>& table = lookup.tables[g];
    // The end of a prefix is useless without its beginning, so it is to be evicted first.
    for (; static_cast<int32_t>(table.size()) > blocks; table.pop_back()) {
      groups_[g].release(table.back());
    }
  }
  lookup.walked = std::min(lookup.walked, blocks);
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
