// Oniguruma's pattern syntax (as Hugging Face's tokenizers compile it: Ruby's flavour) for PCRE2.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "runtime/tokenizer_regex.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

constexpr std::string_view kSpace =
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";
constexpr std::string_view kNotSpace =
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}"
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}"
    "\\x{3001}-\\x{d7ff}\\x{e000}-\\x{10ffff}";
constexpr std::array<std::string_view, 31> kCategories = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N",  "Nd", "Nl", "No", "P", "Pc",
    "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Cc", "Cf"};

// The ranges of the newer code points whose category begins with `category`, as class members.
std::string newer(std::string_view category) {
  std::string ranges;
  for (const UnicodeAddition& addition : unicode_additions()) {
    if (!std::string_view(addition.category).starts_with(category)) continue;
    ranges += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", static_cast<uint32_t>(addition.first),
                          static_cast<uint32_t>(addition.last));
  }
  return ranges;
}

// The members, for a positive class, of one property.
std::string members_of(std::string_view property) {
  if (property == "Han") {
    return "\\p{sc:Han}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}";
  }
  if (property == "word") {
    return "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\p{Alphabetic}\\xb2\\xb3\\xb9\\xbc-\\xbe" +
           newer("L") + newer("M") + newer("Nd") + newer("Nl") + newer("Pc");
  }
  if (std::find(kCategories.begin(), kCategories.end(), property) == kCategories.end()) {
    fail(ErrorCode::kUnimplemented, "the property \\p{{{}}} in a pattern", property);
  }
  return fmt::format("\\p{{{}}}{}", property, newer(property));
}

// One pass over a pattern.
class Rewriter {
 public:
  explicit Rewriter(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      if (pattern_[at_] == '\\') {
        escape();
      } else if (pattern_[at_] == '[') {
        set();
      } else {
        out_ += pattern_[at_++];
      }
    }
    return std::move(out_);
  }

 private:
  // "[", its members up to "]".
  void set() {
    out_ += pattern_[at_++];
    in_set_ = true;
    if (at_ < pattern_.size() && pattern_[at_] == '^') out_ += pattern_[at_++];
    for (bool first = true; at_ < pattern_.size(); first = false) {
      const char c = pattern_[at_];
      if (c == ']' && !first) break;
      if (c == '\\') {
        escape();
      } else if (c == '[' && at_ + 1 < pattern_.size() && pattern_[at_ + 1] == ':') {
        const size_t end = std::min(pattern_.find(":]", at_), pattern_.size() - 2);
        out_ += pattern_.substr(at_, end + 2 - at_);
        at_ = end + 2;
      } else if (c == '[' || (c == '&' && pattern_.substr(at_).starts_with("&&"))) {
        fail(ErrorCode::kUnimplemented, "nested or intersected sets in the pattern '{}'", pattern_);
      } else {
        out_ += pattern_[at_++];
      }
    }
    in_set_ = false;
  }

  void escape() {
    const char kind = at_ + 1 < pattern_.size() ? pattern_[at_ + 1] : '\0';
    at_ += 2;
    switch (kind) {
      case 's': members(std::string(kSpace), false); return;
      case 'S':
        in_set_ ? members(std::string(kNotSpace), false) : members(std::string(kSpace), true);
        return;
      case 'h': members("0-9A-Fa-f", false); return;
      case 'H': members("0-9A-Fa-f", true); return;
      case 'd': members(members_of("Nd"), false); return;
      case 'D': members(members_of("Nd"), true); return;
      case 'w': members(members_of("word"), false); return;
      case 'W': members(members_of("word"), true); return;
      case 'p': property(false); return;
      case 'P': property(true); return;
      case 'b': in_set_ ? members("\\x08", false) : boundary(false); return;
      case 'B': boundary(true); return;
      case 'u': code_point(); return;
      default: break;
    }
    out_ += pattern_.substr(at_ - 2, 2);
  }

  void members(const std::string& members, bool negated) {
    if (in_set_ && negated) {
      fail(ErrorCode::kUnimplemented, "a negated class inside a set in the pattern '{}'", pattern_);
    }
    if (in_set_) {
      out_ += members;
    } else {
      out_ += (negated ? "[^" : "[") + members + "]";
    }
  }

  // "\b" or "\B".
  void boundary(bool negated) {
    const std::string word = fmt::format("[{}]", members_of("word"));
    const auto between = [&](const char* before, const char* after) {
      return fmt::format("(?<{}{})(?{}{})", before, word, after, word);
    };
    out_ += negated ? fmt::format("(?:{}|{})", between("=", "="), between("!", "!"))
                    : fmt::format("(?:{}|{})", between("=", "!"), between("!", "="));
  }

  // After "\p" or "\P": "{Name}", "{^Name}" or one letter.
  void property(bool negated) {
    std::string_view name = pattern_.substr(std::min(at_, pattern_.size()), 1);
    if (name == "{") {
      const size_t end = pattern_.find('}', at_);
      if (end == std::string_view::npos)
        fail(ErrorCode::kDataLoss, "\\p{{ without }} in a pattern");
      name = pattern_.substr(at_ + 1, end - at_ - 1);
      at_ = end + 1;
      if (name.starts_with('^')) {
        negated = !negated;
        name.remove_prefix(1);
      }
    } else {
      at_ += name.size();
    }
    members(members_of(name), negated);
  }

  // After "\u": four hexadecimal digits.
  void code_point() {
    out_ += fmt::format("\\x{{{}}}", pattern_.substr(std::min(at_, pattern_.size()), 4));
    at_ = std::min(at_ + 4, pattern_.size());
  }

  std::string_view pattern_;
  std::string out_;
  size_t at_ = 0;
  bool in_set_ = false;
};

}  // namespace

std::string pcre2_pattern(std::string_view pattern) { return Rewriter(pattern).run(); }

}  // namespace trireme
