// Finds added tokens (special ones too) in a text.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer.h"
#include "runtime/tokenizer_regex.h"

namespace trireme {

class AddedTokenMatcher {
 public:
  // Of the tokens with `normalized` as given; `normalize` is applied to their texts.
  using Normalize = std::function<std::string(const std::string&)>;
  AddedTokenMatcher(const std::vector<AddedToken>& tokens, bool normalized,
                    const Normalize& normalize);

  struct Part {
    std::string_view text;
    int32_t id = -1;  // of an added token; -1: ordinary text
  };
  // Appends the parts of `text` (valid UTF-8). At each place the longest token wins, from left to
  // right; lstrip, rstrip and single_word as in Hugging Face's tokenizers.
  void split(std::string_view text, Regex::Scratch& scratch, std::vector<Part>& parts) const;

  // Bytes of the longest token at the head of `text`; 0: none.
  size_t longest_at(std::string_view text) const;
  bool empty() const { return tokens_.empty(); }

 private:
  struct Node {
    int32_t child = -1;
    int32_t sibling = -1;
    int32_t token = -1;  // index into tokens_
    uint8_t byte = 0;
  };
  struct Flags {
    int32_t id;
    bool single_word, lstrip, rstrip;
  };
  struct Found {
    size_t begin, end;
    const Flags* token;
  };

  void insert(std::string_view text, int32_t token);
  int32_t child_of(int32_t node, uint8_t byte) const;
  std::optional<Found> find(std::string_view text, size_t from) const;
  bool stands_alone(std::string_view text, const Found& found, Regex::Scratch& scratch) const;

  std::vector<Node> nodes_;
  int32_t roots_[256];  // first byte -> node, -1
  std::vector<Flags> tokens_;
  std::optional<Regex> word_;  // only if a token is single_word
};

}  // namespace trireme
