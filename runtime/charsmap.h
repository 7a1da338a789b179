// SentencePiece's precompiled normalization rules: a double-array trie (as Darts-clone writes it)
// from byte strings to their replacements.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

class Charsmap {
 public:
  // `blob`: the trie's bytes (u32), its units (u32 each), the replacements, each ended by a zero.
  // "" is the map without rules. Throws kDataLoss if the trie does not fit the blob.
  Charsmap(std::string_view blob, const std::string& source);

  struct Rule {
    size_t length;  // bytes of the text that it replaces
    std::string_view content;
  };
  // The longest rule at the head of `text`; looks at 256 bytes at most, whatever the trie.
  std::optional<Rule> longest(std::string_view text) const { return find(text, true); }
  // The shortest one.
  std::optional<Rule> shortest(std::string_view text) const { return find(text, false); }

 private:
  std::optional<Rule> find(std::string_view text, bool longest) const;

  std::vector<uint32_t> units_;
  std::string contents_;
};

}  // namespace trireme
