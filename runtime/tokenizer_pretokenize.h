// Cuts a text into the pieces that byte-pair encoding works on.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer.h"
#include "runtime/tokenizer_regex.h"

namespace trireme {

class PreTokenizer {
 public:
  explicit PreTokenizer(const std::vector<TokenizerSpec::Split>& splits);

  struct Scratch {
    Regex::Scratch regex;
    std::vector<std::string_view> pieces, next;
    std::deque<std::string> made;  // pieces that are no part of the text
  };

  // The pieces of `text` (valid UTF-8), in order, none empty: valid until the next call.
  // `at_start`: the text is where the whole text begins.
  const std::vector<std::string_view>& split(std::string_view text, bool at_start,
                                             Scratch& scratch) const;

 private:
  struct Step {
    TokenizerSpec::Split rule;
    std::vector<Regex> regex;  // one, or none
  };
  static void run(const Step& step, std::string_view piece, bool first, Scratch& scratch);
  static void metaspace(const TokenizerSpec::Split& rule, std::string_view piece, bool first,
                        Scratch& scratch);

  std::vector<Step> steps_;
};

}  // namespace trireme
