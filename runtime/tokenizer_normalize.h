// The normalizers of a tokenizer, run one after the other.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/charsmap.h"
#include "runtime/tokenizer.h"
#include "runtime/tokenizer_added.h"
#include "runtime/tokenizer_regex.h"

namespace trireme {

class Normalizer {
 public:
  // `fixed` finds what kSentencePiece leaves as it is (user-defined tokens); may be null, and
  // outlives this. `source` is for messages.
  Normalizer(const std::vector<TokenizerSpec::Normalize>& steps, const AddedTokenMatcher* fixed,
             const std::string& source);

  bool empty() const { return steps_.empty(); }

  struct Result {
    std::string text;
    bool cut = false;  // its first characters were dropped, so that it begins later
  };
  // `text` (valid UTF-8) normalized. Throws kInvalidArgument if it grows more than any real
  // tokenizer's rules let it.
  Result run(std::string_view text, Regex::Scratch& scratch) const;

 private:
  struct Step {
    TokenizerSpec::Normalize rule;
    std::vector<Regex> regex;        // kReplaceRegex: one
    std::vector<Charsmap> charsmap;  // the charsmap kinds: one
  };
  class Limit;

  static std::string strip(std::string_view text, bool left);
  static std::string lowercase(std::string_view text);
  static std::string replace_text(const Step& step, std::string_view text, const Limit& limit,
                                  bool& cut);
  static std::string replace_regex(const Step& step, std::string_view text, const Limit& limit,
                                   Regex::Scratch& scratch, bool& cut);
  static std::string precompiled(const Step& step, std::string_view text, const Limit& limit);
  std::string sentencepiece(const Step& step, std::string_view text, const Limit& limit) const;
  std::string apply(const Step& step, std::string_view text, const Limit& limit,
                    Regex::Scratch& scratch, bool& cut) const;

  std::vector<Step> steps_;
  const AddedTokenMatcher* fixed_;
};

}  // namespace trireme
