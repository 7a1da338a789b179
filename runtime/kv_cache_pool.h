// Block ids, reference counts and prefix hashes: the host's account of the paged KV cache. The
// bytes are runtime/model/kv_cache on each rank.
//
// Layers of equal KvSpec form a KV group with its own block ids and its own free list. A full
// block is known by a hash chained over all tokens before it and a salt. Blocks that nobody
// references stay findable until they are reused, least recently used first.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/huge_vector.h"
#include "runtime/prefix_hash.h"

namespace trireme {

struct KvSpec {
  int32_t window = 0;  // 0: all positions; otherwise the query at p reads only (p - window, p]
  bool operator==(const KvSpec&) const = default;
};

struct KvPoolConfig {
  int32_t block_size = 16;  // tokens a block
  std::vector<KvSpec> groups = {KvSpec{}};
  std::vector<int32_t> blocks = {0};  // blocks of each group
  bool prefix_cache = true;
};

struct KvPoolStats {
  int64_t blocks = 0;      // of all groups
  int64_t used = 0;        // referenced by a sequence
  int64_t cached = 0;      // unreferenced, but findable by prefix
  int64_t hit_tokens = 0;  // since start
  int64_t queried_tokens = 0;
};

// The blocks of one KV group. A block is in exactly one state:
//   free       nobody references it, its content means nothing
//   used       refs >= 1; findable or not
//   cached     refs == 0 and findable: in the LRU list, taken last
class KvGroupBlocks {
 public:
  explicit KvGroupBlocks(int32_t blocks);

  int32_t size() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t available() const { return static_cast<int32_t>(free_.size()) + cached_; }
  int32_t cached() const { return cached_; }
  int32_t used() const { return size() - available(); }
  int32_t refs(int32_t block) const { return blocks_[block].refs; }

  // A block with one reference whose old content is forgotten; kNone if all are in use.
  static constexpr int32_t kNone = -1;
  int32_t take();
  void retain(int32_t block);   // one more reference to a findable block
  void release(int32_t block);  // the last release makes a findable block the most recently used

  // Makes a used block findable. If another block already has this hash, that one stays the
  // answer and `block` goes back to being plain when it is released.
  void publish(int32_t block, const PrefixHash& hash);
  int32_t find(const PrefixHash& hash) const;  // kNone if unknown
  // Finds and retains the blocks of successive hashes, up to the first that is unknown, and appends
  // them to `blocks`. Returns how many.
  size_t retain_run(std::span<const PrefixHash> hashes, std::vector<int32_t>& blocks);
  void forget_prefixes();  // no block is findable any more

  // Throws kInternal unless states, list and table agree and refs equal `expected` per block.
  void check(std::span<const int32_t> expected) const;

 private:
  struct alignas(32) Block {
    PrefixHash hash;
    int32_t refs = 0;
    int32_t previous = kNone;  // in the LRU list, while cached
    int32_t next = kNone;
    bool findable = false;
  };

  void append_lru(int32_t block);
  void remove_lru(int32_t block);
  // An open-addressing table of block ids (linear probing, at most half full). The key is the low
  // half of hash.low: it tells an entry's home and most mismatches without a look at the block.
  struct TableEntry {
    uint32_t key = 0;
    int32_t block = kNone;
  };
  size_t home(const PrefixHash& hash) const { return static_cast<uint32_t>(hash.low) & mask_; }
  size_t next(size_t at) const { return (at + 1) & mask_; }
  bool holds(const TableEntry& entry, const PrefixHash& hash) const {
    return entry.key == static_cast<uint32_t>(hash.low) && blocks_[entry.block].hash == hash;
  }
  void erase_from_table(int32_t block);

  HugeVector<Block> blocks_;
  std::vector<int32_t> free_;  // a stack
  HugeVector<TableEntry> table_;
  size_t mask_ = 0;
  int32_t cached_ = 0;
  int32_t oldest_ = kNone;
  int32_t newest_ = kNone;
};

// The search for a sequence's longest usable prefix, which may take several calls. It holds a
// reference to each block that it found in the groups without a window, so these stay. What it saw
// in windowed groups may be evicted between two calls, so the next one looks again.
struct PrefixLookup {
  // Per group, from block 0 on. Of a windowed group only when the search is complete, and not held.
  std::vector<std::vector<int32_t>> tables;
  int32_t walked = 0;      // blocks held in every group without a window
  int32_t candidate = -1;  // no longer prefix is usable; -1: not known yet
  bool complete = false;   // the first `candidate` blocks need no computing
};

class KvCachePool {
 public:
  explicit KvCachePool(const KvPoolConfig& config);  // throws kInvalidArgument

  const KvPoolConfig& config() const { return config_; }
  int32_t block_size() const { return config_.block_size; }
  size_t groups() const { return groups_.size(); }
  KvGroupBlocks& group(size_t index) { return groups_[index]; }
  const KvGroupBlocks& group(size_t index) const { return groups_[index]; }
  const PrefixHasher& hasher() const { return hasher_; }

  // The first block that the query at `position` reads in a group.
  int32_t first_needed(size_t group, int32_t position) const;
  // The most blocks that a sequence of `tokens` KV positions holds at once, computed token by
  // token: what a group must own for the sequence to be sure to finish.
  int32_t blocks_to_finish(size_t group, int32_t tokens) const;
  // The blocks that a sequence of `tokens` known tokens has yet to take, where its table has
  // `length` entries of which the first `live` have left the window.
  int32_t blocks_to_take(size_t group, int32_t tokens, int32_t length, int32_t live) const;
  int32_t blocks_for(int32_t tokens) const {
    return static_cast<int32_t>((int64_t{tokens} + config_.block_size - 1) / config_.block_size);
  }

  // Goes on with a search among the first `limit` blocks of `tokens`, until it is complete or
  // `left` blocks were looked at (a few more to see a window whole); takes them off `left`. A
  // search that was complete begins again behind what it holds: more may have been published.
  bool look_up(PrefixLookup& lookup, PrefixChain& chain, std::span<const int32_t> tokens,
               int32_t limit, int64_t& left);
  // Of a complete search since which no block was taken: how many blocks of a group claim() will
  // make unavailable.
  int32_t unclaimed(const PrefixLookup& lookup, size_t group) const;
  // Ends such a search: its tables become those of the sequence, `candidate` entries each (in a
  // windowed group kNone where no later query reads), and the references are the sequence's.
  void claim(PrefixLookup& lookup);
  // Releases what the search holds beyond its first `blocks` blocks.
  void shorten(PrefixLookup& lookup, int32_t blocks);

  void count_query(int64_t queried, int64_t hit);
  KvPoolStats stats() const;

 private:
  bool walk(PrefixLookup& lookup, PrefixChain& chain, std::span<const int32_t> tokens,
            int32_t limit, int64_t& left);
  bool check_windows(PrefixLookup& lookup, PrefixChain& chain, std::span<const int32_t> tokens,
                     int64_t& left) const;

  KvPoolConfig config_;
  std::vector<KvGroupBlocks> groups_;
  std::vector<size_t> unwindowed_;  // groups
  std::vector<size_t> windowed_;
  PrefixHasher hasher_;
  int64_t hit_tokens_ = 0;
  int64_t queried_tokens_ = 0;
};

}  // namespace trireme
