// Byte-pair encoding of one pre-token, over bytes or over code points.
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

// Immutable once built. Merges the neighbours of the best rank first, the leftmost of equals. Long
// pieces are first cut where no token reaches across; what is left takes time in proportion to its
// length, up to sorting.
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
    static constexpr size_t kCacheEntries = 1 << 14;
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
    // The places of one rank's merges: in ascending order as they mostly come, those before `done`
    // dealt with, and a heap of those that came out of order.
    struct Bucket {
      std::vector<int32_t> places;
      size_t done = 0;
      std::vector<int32_t> late;
    };
    std::vector<Entry> cache_;
    std::vector<int32_t> ids_, ranks_;
    std::vector<Symbol> symbols_;
    std::vector<int32_t> bucket_of_;  // by rank; -1: none
    std::vector<Bucket> buckets_;
    std::vector<int32_t> free_buckets_;
    std::vector<int32_t> waiting_;  // a heap of the ranks that have a bucket
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

  // Construction: merges as listed, or those that ranks imply.
  void read_alphabet(const StringIds& ids);
  void read_listed(const TokenizerSpec& spec, const StringIds& ids);
  void read_implied(const TokenizerSpec& spec, const StringIds& ids);
  void note_pairs(const TokenizerSpec& spec);
  void add_merge(int32_t left, int32_t right, int32_t rank, int32_t id);
  const Merge* find_merge(int32_t left, int32_t right) const;

  // The symbol of a code point; -1: none.
  int32_t symbol_of(char32_t code_point) const;
  bool may_join(char32_t left, char32_t right) const;
  size_t cut(std::string_view piece) const;
  void encode_part(std::string_view part, Scratch& scratch, std::vector<int32_t>& out) const;
  void read_bytes(std::string_view piece, std::vector<int32_t>& ids) const;
  void read_characters(std::string_view piece, std::vector<int32_t>& ids) const;
  void put_unknown(std::string_view character, std::vector<int32_t>& ids,
                   bool& unknown_before) const;
  void settle(std::vector<int32_t>& ids) const;
  void merge_few(std::vector<int32_t>& ids, std::vector<int32_t>& ranks) const;
  void merge_many(Scratch& scratch) const;
  void await(Scratch& scratch, int32_t at) const;
  static int32_t next_place(Scratch::Bucket& bucket);
  void run_bucket(Scratch& scratch, int32_t rank) const;

  bool bytewise_;
  int32_t byte_ids_[256];  // of single bytes: tokens of the alphabet, or "<0xHH>"
  bool byte_fallback_ = false;
  int32_t unknown_id_;
  bool fuse_unknown_;
  int32_t rank_count_ = 0;
  std::vector<Merge> merges_;  // open addressing, a power of two
  StringIds whole_;            // text -> id, only if merges are ignored for whole tokens

  // Over code points. A code point that tokens hold but that is none itself is a symbol all the
  // same, from first_part_ on: SentencePiece merges what spells a token, whatever its parts are.
  std::vector<int32_t> symbols_low_;  // below kLow
  std::unordered_map<char32_t, int32_t> symbols_high_;
  int32_t first_part_;
  std::vector<std::string> parts_;
  std::vector<uint64_t> pairs_;  // bits by hash: neighbours within a token, and some that are not
};

}  // namespace trireme
