// Byte-pair encoding of one pre-token.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/tokenizer.h"

namespace trireme {

// The bytes that a token spells in the byte-level alphabet (GPT-2's: printable Latin-1 for itself,
// U+0100 and up for the others); nullopt where a character is not of the alphabet.
std::optional<std::string> bytes_of_token(std::string_view token);

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
using StringIds = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

// Immutable once built. Merges the neighbours of the best rank first, the leftmost of equals, with
// a heap: n bytes take O(n log n).
class Bpe {
 public:
  // `ids`: token text -> id. Throws kDataLoss for a merge of or into an unknown token.
  Bpe(const TokenizerSpec& spec, const StringIds& ids);

  // What one thread encodes with: buffers, and a direct-mapped cache of short pieces. Belongs to
  // one Bpe for life.
  class Scratch {
   public:
    Scratch() : cache_(kCacheEntries) {}

   private:
    friend class Bpe;
    static constexpr size_t kCacheEntries = 1 << 13;
    static constexpr size_t kMaxBytes = 23;
    static constexpr size_t kMaxIds = 6;
    struct Entry {
      char bytes[kMaxBytes];
      uint8_t length = 0;  // 0: unused
      int32_t ids[kMaxIds];
      int32_t count;
    };
    struct Symbol {
      int32_t id;    // -1: merged into its left neighbour
      int32_t prev;  // -1: none
      int32_t next;
      int32_t rank;  // of the merge with next; -1: none
    };
    std::vector<Entry> cache_;
    std::vector<int32_t> ids_, ranks_;
    std::vector<Symbol> symbols_;
    std::vector<uint64_t> heap_;  // rank << 32 | position
  };

  // Appends the ids of `piece`.
  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    int32_t rank = 0;
    int32_t id = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  void add_merge(int32_t left, int32_t right, int32_t rank, int32_t id);
  const Merge* find_merge(int32_t left, int32_t right) const;
  void read_bytes(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_few(std::vector<int32_t>& ids, std::vector<int32_t>& ranks) const;
  void merge_many(Scratch& scratch) const;

  int32_t byte_ids_[256];
  int32_t unknown_id_;
  bool fuse_unknown_;
  std::vector<Merge> merges_;  // open addressing, a power of two
  StringIds whole_;            // bytes -> id, only if merges are ignored for whole tokens
};

}  // namespace trireme
