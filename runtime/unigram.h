// Unigram segmentation: of all ways to spell a text with tokens, the one of the greatest sum of
// scores (Kudo 2018, "Subword Regularization"; the search is Viterbi's).
#pragma once

#include <cstdint>
#include <string>
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
  // A trie in breadth-first order: the children of a node lie together, their labels apart from
  // them, so that a step touches two cache lines.
  struct Node {
    double score = 0;
    int32_t id = -1;  // the token that ends here
    uint32_t first = 0;
    uint32_t count = 0;
  };
  struct Token {
    std::string_view text;
    int32_t id;
    double score;
  };

  void build(std::vector<Token> tokens);
  const Node* child_of(const Node& node, char byte) const;
  void search(std::string_view piece, std::vector<Scratch::Best>& best) const;
  void put_unknown(std::string_view text, std::vector<int32_t>& reversed) const;

  std::vector<Node> nodes_;  // the root first
  std::string labels_;       // of each node, the byte that leads to it
  double unknown_score_ = 0;
  bool single_precision_;
  int32_t unknown_id_;
  bool fuse_unknown_;
  bool byte_fallback_ = false;
  int32_t byte_ids_[256];
};

}  // namespace trireme
