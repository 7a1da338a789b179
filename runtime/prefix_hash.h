// The name of a full block of tokens: a hash over its tokens and all tokens before them.
//
// SipHash-2-4 with 128 bits of output (Aumasson and Bernstein 2012), under a key drawn anew by each
// process. Equal hashes are taken for equal prefixes without comparing tokens: among n blocks two
// different prefixes meet with probability n^2 / 2^129 (2^40 blocks: 2^-49), and nobody can
// construct such a pair without the key, so no client can read another's cache by a collision.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace trireme {

struct PrefixHash {
  uint64_t low = 0;
  uint64_t high = 0;
  bool operator==(const PrefixHash&) const = default;
};

PrefixHash siphash128(std::span<const std::byte> message, const std::array<uint64_t, 2>& key);

class PrefixHasher {
 public:
  PrefixHasher();  // a random key
  explicit PrefixHasher(const std::array<uint64_t, 2>& key) : key_(key) {}

  // What the chain of a salt begins with: chains of different salts never meet.
  PrefixHash root(uint64_t salt) const;
  // The hash of the block with these tokens that follows the block `parent` (or a root).
  PrefixHash extend(const PrefixHash& parent, std::span<const int32_t> tokens) const;

 private:
  std::array<uint64_t, 2> key_;
};

// The hashes of one sequence's full blocks, each computed when it is first asked for.
class PrefixChain {
 public:
  // `known`: those of the first blocks, where they were computed before.
  PrefixChain(const PrefixHasher& hasher, uint64_t salt, int32_t block_size,
              std::vector<PrefixHash> known = {})
      : hasher_(&hasher),
        root_(hasher.root(salt)),
        block_size_(block_size),
        hashes_(std::move(known)) {}

  // `tokens` are the sequence's; they only ever grow, and reach to the end of block `index`.
  PrefixHash at(int32_t index, std::span<const int32_t> tokens) {
    while (static_cast<int32_t>(hashes_.size()) <= index) {
      const auto block = tokens.subspan(hashes_.size() * block_size_, block_size_);
      hashes_.push_back(hasher_->extend(hashes_.empty() ? root_ : hashes_.back(), block));
    }
    return hashes_[index];
  }
  std::vector<PrefixHash> take() && { return std::move(hashes_); }  // all that were computed
  // Those of `count` blocks from `begin` on; valid until another is computed.
  std::span<const PrefixHash> range(int32_t begin, int32_t count, std::span<const int32_t> tokens) {
    if (count > 0) at(begin + count - 1, tokens);
    return std::span<const PrefixHash>(hashes_).subspan(begin, count);
  }

 private:
  const PrefixHasher* hasher_;
  PrefixHash root_;
  int32_t block_size_;
  std::vector<PrefixHash> hashes_;
};

}  // namespace trireme
