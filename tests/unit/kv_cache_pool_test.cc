#include "runtime/kv_cache_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "base/error.h"

namespace trireme {
namespace {

constexpr int32_t kNone = KvGroupBlocks::kNone;

std::vector<int32_t> iota(int32_t count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 100);
  return tokens;
}

TEST(PrefixHash, SipHashMatchesThePublishedVector) {
  // Key 00…0f, empty message: the first of the reference implementation's 128-bit vectors.
  const std::array<uint64_t, 2> key = {0x0706050403020100u, 0x0f0e0d0c0b0a0908u};
  const PrefixHash hash = siphash128({}, key);
  EXPECT_EQ(hash.low, 0xe6a825ba047f81a3u);
  EXPECT_EQ(hash.high, 0x930255c71472f66du);
}

TEST(PrefixHash, ChainsDifferByKeySaltOrderAndPosition) {
  const PrefixHasher hasher({1, 2});
  const PrefixHasher other({1, 3});
  const std::vector<int32_t> a = {1, 2};
  const std::vector<int32_t> b = {2, 1};
  const PrefixHash root = hasher.root(0);
  EXPECT_NE(root, hasher.root(1));
  EXPECT_NE(root, other.root(0));
  EXPECT_NE(hasher.extend(root, a), hasher.extend(root, b));
  EXPECT_NE(hasher.extend(root, a), hasher.extend(hasher.extend(root, a), a));
  EXPECT_EQ(hasher.extend(root, a), PrefixHasher({1, 2}).extend(root, a));
  EXPECT_NE(PrefixHasher().root(0), PrefixHasher().root(0));  // each process has its own key
}

TEST(PrefixHash, ChainEqualsBlockByBlock) {
  const PrefixHasher hasher({5, 6});
  const std::vector<int32_t> tokens = iota(10);
  PrefixChain chain(hasher, 9, 3);
  PrefixHash expected = hasher.root(9);
  for (int32_t i = 0; i < 3; ++i) {
    expected = hasher.extend(expected, std::span(tokens).subspan(i * 3, 3));
    EXPECT_EQ(chain.at(i, tokens), expected);
  }
}

TEST(KvGroupBlocks, LeastRecentlyReleasedBlockIsReusedFirst) {
  KvGroupBlocks group(3);
  const int32_t a = group.take();
  const int32_t b = group.take();
  const int32_t c = group.take();
  EXPECT_EQ(group.take(), kNone);
  group.publish(a, {1, 0});
  group.publish(b, {2, 0});
  group.publish(c, {3, 0});
  group.release(b);
  group.release(a);
  group.release(c);
  EXPECT_EQ(group.available(), 3);
  EXPECT_EQ(group.cached(), 3);
  group.retain(group.find({2, 0}));  // a hit saves b, the oldest
  EXPECT_EQ(group.take(), a);
  EXPECT_EQ(group.find({1, 0}), kNone);
  EXPECT_EQ(group.take(), c);
  EXPECT_EQ(group.take(), kNone);  // b is referenced: never evicted
  EXPECT_EQ(group.find({2, 0}), b);
  group.check(std::vector<int32_t>{1, 1, 1});
}

TEST(KvGroupBlocks, FreeBlocksAreTakenBeforeCachedOnes) {
  KvGroupBlocks group(2);
  const int32_t a = group.take();
  group.publish(a, {1, 0});
  group.release(a);
  EXPECT_NE(group.take(), a);
  EXPECT_EQ(group.find({1, 0}), a);
}

TEST(KvGroupBlocks, TheFirstBlockOfAPrefixStaysTheAnswer) {
  KvGroupBlocks group(2);
  const int32_t a = group.take();
  const int32_t b = group.take();
  group.publish(a, {1, 0});
  group.publish(b, {1, 0});
  EXPECT_EQ(group.find({1, 0}), a);
  group.release(b);
  EXPECT_EQ(group.cached(), 0);  // b is plain
  group.check(std::vector<int32_t>{1, 0});
}

TEST(KvGroupBlocks, HashesThatMeetInTheTableAreToldApart) {
  KvGroupBlocks group(8);
  std::vector<int32_t> blocks;
  for (uint64_t i = 0; i < 8; ++i) {
    blocks.push_back(group.take());
    group.publish(blocks.back(), {16 * (i % 3), i});  // three homes, one of them at the wrap
  }
  for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(group.find({16 * (i % 3), i}), blocks[i]);
  EXPECT_EQ(group.find({16, 99}), kNone);
}

TEST(KvGroupBlocks, ReleasingTwiceIsABug) {
  KvGroupBlocks group(1);
  const int32_t block = group.take();
  group.release(block);
  EXPECT_THROW(group.release(block), Error);
}

TEST(KvGroupBlocks, CheckNoticesWrongCounts) {
  KvGroupBlocks group(2);
  group.take();
  EXPECT_THROW(group.check(std::vector<int32_t>{0, 0}), Error);
  EXPECT_THROW(group.check(std::vector<int32_t>{2, 0}), Error);
  EXPECT_NO_THROW(group.check(std::vector<int32_t>{1, 0}));
}

// Random operations against a plain model, with hashes that often share a home in the table.
TEST(KvGroupBlocks, RandomOperationsKeepTheAccounts) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    std::mt19937_64 random(seed);
    const auto size = static_cast<int32_t>(1 + random() % 24);
    KvGroupBlocks group(size);
    std::vector<int32_t> refs(size, 0);
    for (int step = 0; step < 300; ++step) {
      const auto block = static_cast<int32_t>(random() % size);
      const PrefixHash hash = {random() % 4 * 1000003, random() % 16};
      switch (random() % 5) {
        case 0:
        case 1: {
          const int32_t taken = group.take();
          const bool full = std::all_of(refs.begin(), refs.end(), [](int32_t r) { return r > 0; });
          ASSERT_EQ(taken == kNone, full);
          if (taken != kNone) {
            ASSERT_EQ(refs[taken]++, 0);
          }
          break;
        }
        case 2:
          if (refs[block] > 0) group.publish(block, hash);
          break;
        case 3:
          if (const int32_t found = group.find(hash); found != kNone) {
            group.retain(found);
            ++refs[found];
          }
          break;
        default:
          if (refs[block] > 0) {
            group.release(block);
            --refs[block];
          }
      }
      if (random() % 500 == 0) group.forget_prefixes();
      ASSERT_NO_THROW(group.check(refs)) << "seed " << seed;
    }
  }
}

// A pool whose first `count` blocks of `tokens` are published in every group, and unreferenced.
KvCachePool filled_pool(const KvPoolConfig& config, const std::vector<int32_t>& tokens,
                        int32_t count) {
  KvCachePool pool(config);
  PrefixChain chain(pool.hasher(), 0, config.block_size);
  for (size_t g = 0; g < pool.groups(); ++g) {
    std::vector<int32_t> blocks;
    for (int32_t i = 0; i < count; ++i) {
      blocks.push_back(pool.group(g).take());
      pool.group(g).publish(blocks.back(), chain.at(i, tokens));
    }
    for (const int32_t block : blocks) pool.group(g).release(block);
  }
  return pool;
}

// What a search in one go finds; it lets go of it again.
struct Found {
  int32_t blocks = 0;
  std::vector<std::vector<int32_t>> tables;
  std::vector<int32_t> unavailable;  // per group: blocks that would be taken out of reach
};

Found find(KvCachePool& pool, PrefixChain& chain, const std::vector<int32_t>& tokens,
           int32_t limit) {
  std::vector<int32_t> before;
  for (size_t g = 0; g < pool.groups(); ++g) before.push_back(pool.group(g).available());
  PrefixLookup lookup;
  int64_t left = 1 << 30;
  EXPECT_TRUE(pool.look_up(lookup, chain, tokens, limit, left));
  Found found{lookup.candidate, lookup.tables, {}};
  for (size_t g = 0; g < pool.groups(); ++g) {
    found.unavailable.push_back(before[g] - pool.group(g).available() + pool.unclaimed(lookup, g));
  }
  pool.shorten(lookup, 0);
  for (size_t g = 0; g < pool.groups(); ++g) EXPECT_EQ(pool.group(g).available(), before[g]);
  return found;
}

TEST(KvCachePool, ALookupStopsAtTheFirstGap) {
  const std::vector<int32_t> tokens = iota(40);
  KvCachePool pool = filled_pool({.block_size = 4, .blocks = {6}}, tokens, 5);
  PrefixChain chain(pool.hasher(), 0, 4);
  EXPECT_EQ(find(pool, chain, tokens, 9).blocks, 5);
  EXPECT_EQ(find(pool, chain, tokens, 3).blocks, 3);
  EXPECT_EQ(find(pool, chain, tokens, 9).unavailable, std::vector<int32_t>{5});
  PrefixChain salted(pool.hasher(), 1, 4);
  EXPECT_EQ(find(pool, salted, tokens, 9).blocks, 0);
  std::vector<int32_t> other = tokens;
  other[9] = 7;
  PrefixChain changed(pool.hasher(), 0, 4);
  EXPECT_EQ(find(pool, changed, other, 9).blocks, 2);
}

TEST(KvCachePool, AWindowedGroupNeedsOnlyTheWindow) {
  const std::vector<int32_t> tokens = iota(40);
  const KvPoolConfig config{.block_size = 4, .groups = {{0}, {6}}, .blocks = {6, 6}};
  KvCachePool pool = filled_pool(config, tokens, 5);
  PrefixChain chain(pool.hasher(), 0, 4);
  // Evict blocks 0 and 1 of the windowed group: it has one free block, then takes them by age.
  for (int32_t i = 0; i < 3; ++i) pool.group(1).take();
  const Found found = find(pool, chain, tokens, 9);
  EXPECT_EQ(found.blocks, 5);  // position 20 reads 15…20: blocks 3 and 4
  EXPECT_EQ(found.tables[1][2], kNone);
  EXPECT_NE(found.tables[1][3], kNone);
  EXPECT_EQ(found.unavailable, (std::vector<int32_t>{5, 2}));
  // Position 16 reads 11…16: blocks 2 and 3. Position 12 reads 7…12, and block 1 is gone.
  EXPECT_EQ(find(pool, chain, tokens, 4).blocks, 4);
  EXPECT_EQ(find(pool, chain, tokens, 3).blocks, 0);
}

// In pieces of any size, with blocks missing anywhere and windows of any width: the longest prefix
// whose every read is there, and in the end nothing is held that was not found.
TEST(KvCachePool, ALookupInPiecesFindsTheLongestUsablePrefix) {
  int longest_is_not_trivial = 0;
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    std::mt19937_64 random(seed);
    const auto pick = [&](int32_t low, int32_t high) {
      return static_cast<int32_t>(low + random() % (high - low + 1));
    };
    KvPoolConfig config{.block_size = pick(1, 4), .groups = {}, .blocks = {}};
    for (int32_t g = pick(1, 3); g > 0; --g) {
      config.groups.push_back({pick(0, 1) * pick(1, 20)});
      config.blocks.push_back(150);
    }
    KvCachePool pool(config);
    const int32_t limit = pick(0, 140);
    const std::vector<int32_t> tokens = iota(limit * config.block_size + 1);
    PrefixChain chain(pool.hasher(), 0, config.block_size);
    std::vector<std::vector<int32_t>> refs(pool.groups());
    std::vector<std::vector<bool>> there(pool.groups(), std::vector<bool>(limit));
    for (size_t g = 0; g < pool.groups(); ++g) {
      refs[g].resize(150);
      const int32_t gaps = config.groups[g].window == 0 ? pick(0, 1) : pick(0, 30);
      std::vector<int32_t> taken;
      for (int32_t i = 0; i < limit; ++i) {
        there[g][i] = pick(1, 100) > gaps;
        taken.push_back(pool.group(g).take());
        if (there[g][i]) pool.group(g).publish(taken.back(), chain.at(i, tokens));
      }
      for (const int32_t block : taken) pool.group(g).release(block);
    }
    int32_t longest = 0;
    for (int32_t n = 1; n <= limit; ++n) {
      bool usable = true;
      for (size_t g = 0; g < pool.groups(); ++g) {
        const auto from = there[g].begin() + pool.first_needed(g, n * config.block_size);
        usable = usable && std::all_of(from, there[g].begin() + n, [](bool b) { return b; });
      }
      if (usable) longest = n;
    }
    PrefixLookup lookup;
    int64_t left = 0;
    for (int32_t piece = 0; !pool.look_up(lookup, chain, tokens, limit, left); ++piece) {
      ASSERT_LT(piece, 4 * 140) << "seed " << seed;
      left = pick(1, 40);
    }
    ASSERT_EQ(lookup.candidate, longest) << "seed " << seed;
    pool.claim(lookup);
    for (size_t g = 0; g < pool.groups(); ++g) {
      const std::vector<int32_t>& table = lookup.tables[g];
      ASSERT_EQ(static_cast<int32_t>(table.size()), longest);
      const int32_t first = pool.first_needed(g, longest * config.block_size);
      for (int32_t i = 0; i < longest; ++i) {
        ASSERT_EQ(table[i] != kNone, i >= first) << "seed " << seed << " group " << g;
        if (table[i] == kNone) continue;
        ASSERT_EQ(table[i], pool.group(g).find(chain.at(i, tokens)));
        ++refs[g][table[i]];
      }
      ASSERT_NO_THROW(pool.group(g).check(refs[g])) << "seed " << seed;
    }
    longest_is_not_trivial += longest > 0 && longest < limit;
  }
  EXPECT_GT(longest_is_not_trivial, 200);
}

TEST(KvCachePool, BlocksToFinishIsTheWorstThatAnyPositionReads) {
  for (int32_t block_size = 1; block_size <= 5; ++block_size) {
    for (int32_t window = 1; window <= 12; ++window) {
      const KvCachePool pool({.block_size = block_size, .groups = {{window}}, .blocks = {99}});
      for (int32_t tokens = 1; tokens <= 60; ++tokens) {
        int32_t most = 0;
        for (int32_t at = 0; at < tokens; ++at) {
          const int32_t first = std::max(0, at - window + 1) / block_size;
          EXPECT_EQ(pool.first_needed(0, at), first);
          most = std::max(most, at / block_size - first + 1);
        }
        EXPECT_GE(pool.blocks_to_finish(0, tokens), most);
        if (tokens > window + 2 * block_size) {
          EXPECT_EQ(pool.blocks_to_finish(0, tokens), most)
              << block_size << " " << window << " " << tokens;
        }
      }
    }
  }
}

TEST(KvCachePool, BadConfigurationsAreNamed) {
  EXPECT_THROW(KvCachePool({.block_size = 0, .blocks = {1}}), Error);
  EXPECT_THROW(KvCachePool({.groups = {{0}, {4}}, .blocks = {1}}), Error);
  EXPECT_THROW(KvCachePool({.groups = {}, .blocks = {}}), Error);
  EXPECT_THROW(KvCachePool({.groups = {{-1}}, .blocks = {1}}), Error);
  EXPECT_THROW(KvCachePool({.blocks = {0}}), Error);
}

}  // namespace
}  // namespace trireme
