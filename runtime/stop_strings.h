// Finds stop strings in text that arrives in pieces, and holds back what may still become one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

// The outcome depends on the whole text only, never on where it was cut into pieces: the first
// byte that completes a stop string ends the text, and if it completes several, the longest counts.
// Knuth, Morris, Pratt 1977, one automaton a string.
class StopStrings {
 public:
  StopStrings() = default;
  // None may be empty. `include`: a matched string stays in the text (then nothing is held back).
  StopStrings(std::vector<std::string> strings, bool include);

  // Appends to `out` all text that is now known to precede any stop string. Returns the index of
  // the string that matched, after which nothing more may be pushed, or -1.
  int push(std::string_view piece, std::string& out);
  // The text has ended without a match: appends what was held back.
  void finish(std::string& out);

  const std::string& string(int index) const { return patterns_[index].text; }

 private:
  struct Pattern {
    std::string text;
    std::vector<uint32_t> failure;  // [i]: longest proper border of text[0, i]
    uint32_t matched = 0;           // the longest prefix that the text so far ends with
    bool push(char byte);           // true when the whole string is matched
  };
  std::vector<Pattern> patterns_;
  std::string held_;  // the end of the text that is a proper prefix of some string
  bool include_ = false;
};

}  // namespace trireme
