// Unigram segmentation: of all ways to spell a text with tokens, the one of the greatest sum of
// scores (Kudo 2018, "Subword Regularization"; the search is Viterbi's).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "runtime/tokenizer.h"

namespace trireme {

// Immutable once built. A search looks at no more bytes per code point than the longest token has,
// and the longest has 1024.
class Unigram {
 public:
  // Throws kDataLoss for scores that do not fit the tokens, or a longer token.
  explicit Unigram(const TokenizerSpec& spec);

  class Scratch {
   private:
    friend class Unigram;
    struct Best {
      double score;
      int32_t begin;  // -1: no path ends here
      int32_t id;     // -1: unknown
    };
    std::vector<Best> best_;
    std::vector<int32_t> reversed_;
  };

  // Appends the ids of `piece` (valid UTF-8).
  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  struct Edge {
    uint64_t key = kNoKey;  // node << 8 | byte
    int32_t node = 0;
    int32_t id = -1;  // the token that ends at `node`
  };
  static constexpr uint64_t kNoKey = ~uint64_t{0};

  int32_t insert(std::string_view token);
  size_t slot_of(uint64_t key) const;
  void grow();
  void search(std::string_view piece, std::vector<Scratch::Best>& best) const;
  void put_unknown(std::string_view text, std::vector<int32_t>& reversed) const;

  std::vector<Edge> edges_;  // open addressing, a power of two; the root is node 0
  size_t edge_count_ = 0;
  std::vector<double> scores_;       // by id
  std::vector<uint32_t> user_bytes_;  // by id: of a user-defined token, whose score grows with it
  double unknown_score_ = 0;
  double greatest_ = 0;
  bool single_precision_;
  int32_t unknown_id_;
  bool fuse_unknown_;
  bool byte_fallback_ = false;
  int32_t byte_ids_[256];
};

}  // namespace trireme
