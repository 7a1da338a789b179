// The regexes of pre-tokenizers: Oniguruma's syntax and Unicode data, matched by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace trireme {

// The pattern for PCRE2 (UTF, UCP, MULTILINE) that matches what `pattern` matches in Oniguruma:
// \s, \w, \h and the \p{…} classes are spelled out where the two differ. Throws kUnimplemented for
// syntax that PCRE2 lacks (set intersection, nested sets) and for unknown properties.
std::string pcre2_pattern(std::string_view pattern);

class Regex {
 public:
  // Throws kDataLoss if the pattern does not compile; see also pcre2_pattern().
  explicit Regex(std::string_view pattern);
  ~Regex();
  Regex(Regex&&) noexcept;

  // What one thread matches with, for any number of regexes.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;

   private:
    friend class Regex;
    struct State;
    std::unique_ptr<State> state_;
  };

  struct Match {
    size_t begin;
    size_t end;
  };
  // The first match at or after `from` in valid UTF-8. Throws kInvalidArgument if the search takes
  // more steps or memory than a pattern of a tokenizer should.
  std::optional<Match> find(std::string_view text, size_t from, Scratch& scratch) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace trireme
