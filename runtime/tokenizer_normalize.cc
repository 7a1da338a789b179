#include "runtime/tokenizer_normalize.h"

#include "base/error.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

using Kind = TokenizerSpec::Normalize::Kind;

constexpr size_t kMaxSteps = 64;
constexpr size_t kMaxContent = 1 << 12;  // of a replacement, in bytes
constexpr size_t kMaxGrowth = 32;        // NFKC needs 11 (U+FDFA)
constexpr size_t kMaxGrapheme = 6;       // longer ones are not looked up as a whole
constexpr std::string_view kMark = "\u2581";

// Whether a text is white space from `begin` on its left or its right end.
size_t leading_space(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const Utf8Step step = utf8_step(text.substr(i));
    if (!is_white_space(step.code_point)) break;
    i += step.length;
  }
  return i;
}

size_t without_trailing_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = end - 1;
    while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    if (!is_white_space(utf8_step(text.substr(begin)).code_point)) break;
    end = begin;
  }
  return end;
}

// The bytes of the grapheme cluster at the head of `text`.
size_t grapheme_length(std::string_view text) {
  const Utf8Step first = utf8_step(text);
  char32_t before = first.code_point;
  int32_t state = 0;
  size_t length = first.length;
  while (length < text.size()) {
    const Utf8Step next = utf8_step(text.substr(length));
    if (breaks_grapheme(before, next.code_point, state)) break;
    length += next.length;
    before = next.code_point;
  }
  return length;
}

}  // namespace

// What a text may grow to, over all steps.
class Normalizer::Limit {
 public:
  explicit Limit(size_t bytes) : most_(bytes * kMaxGrowth + 2 * kMaxContent) {}
  void check(const std::string& text) const {
    if (text.size() > most_) {
      fail(ErrorCode::kInvalidArgument, "normalized, the text has more than {} bytes", most_);
    }
  }

 private:
  size_t most_;
};

Normalizer::Normalizer(const std::vector<TokenizerSpec::Normalize>& steps,
                       const AddedTokenMatcher* fixed, const std::string& source)
    : fixed_(fixed) {
  if (steps.size() > kMaxSteps) {
    fail(ErrorCode::kDataLoss, "{}: {} normalizers; at most {}", source, steps.size(), kMaxSteps);
  }
  for (const TokenizerSpec::Normalize& rule : steps) {
    Step step{rule, {}, {}};
    const bool mapped = rule.kind == Kind::kPrecompiled || rule.kind == Kind::kSentencePiece;
    if (mapped) step.charsmap.emplace_back(rule.content, source);
    if (!mapped && rule.content.size() > kMaxContent) {
      fail(ErrorCode::kDataLoss, "{}: a replacement of {} bytes; at most {}", source,
           rule.content.size(), kMaxContent);
    }
    if (rule.kind == Kind::kReplaceRegex) step.regex.emplace_back(rule.pattern);
    steps_.push_back(std::move(step));
  }
}

Normalizer::Result Normalizer::run(std::string_view text, Regex::Scratch& scratch) const {
  const Limit limit(text.size());
  Result out{std::string(text), false};
  for (const Step& step : steps_) {
    out.text = apply(step, out.text, limit, scratch, out.cut);
    limit.check(out.text);
  }
  return out;
}

std::string Normalizer::apply(const Step& step, std::string_view text, const Limit& limit,
                              Regex::Scratch& scratch, bool& cut) const {
  switch (step.rule.kind) {
    case Kind::kNfc: return normalized(text, UnicodeForm::kNfc);
    case Kind::kNfd: return normalized(text, UnicodeForm::kNfd);
    case Kind::kNfkc: return normalized(text, UnicodeForm::kNfkc);
    case Kind::kNfkd: return normalized(text, UnicodeForm::kNfkd);
    case Kind::kLowercase: return lowercase(text);
    case Kind::kStripLeft: cut = cut || leading_space(text) > 0; return strip(text, true);
    case Kind::kStripRight: return strip(text, false);
    case Kind::kReplaceText: return replace_text(step, text, limit, cut);
    case Kind::kReplaceRegex: return replace_regex(step, text, limit, scratch, cut);
    case Kind::kPrepend: {
      std::string out;
      if (!text.empty()) out.append(step.rule.content).append(text);
      return out;
    }
    case Kind::kPrecompiled: return precompiled(step, text, limit);
    case Kind::kSentencePiece: return sentencepiece(step, text, limit);
  }
  return std::string(text);
}

std::string Normalizer::strip(std::string_view text, bool left) {
  return std::string(left ? text.substr(leading_space(text))
                          : text.substr(0, without_trailing_space(text)));
}

std::string Normalizer::lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text.substr(i));
    append_lowercase(out, step.code_point);
    i += step.length;
  }
  return out;
}

std::string Normalizer::replace_text(const Step& step, std::string_view text, const Limit& limit,
                                     bool& cut) {
  const std::string& pattern = step.rule.pattern;
  std::string out;
  out.reserve(text.size() + text.size() / 2);
  size_t done = 0;
  while (!pattern.empty()) {
    const size_t at = text.find(pattern, done);
    if (at == std::string_view::npos) break;
    cut = cut || (at == 0 && step.rule.content.empty());
    out.append(text.substr(done, at - done)).append(step.rule.content);
    done = at + pattern.size();
    limit.check(out);
  }
  return out.append(text.substr(done));
}

std::string Normalizer::replace_regex(const Step& step, std::string_view text, const Limit& limit,
                                      Regex::Scratch& scratch, bool& cut) {
  std::string out;
  size_t done = 0;
  for (size_t from = 0; from <= text.size();) {
    const auto match = step.regex.front().find(text, from, scratch);
    if (!match) break;
    cut = cut || (match->begin == 0 && match->end > 0 && step.rule.content.empty());
    out.append(text.substr(done, match->begin - done)).append(step.rule.content);
    done = from = match->end;
    limit.check(out);
    if (match->begin == match->end) {
      if (from == text.size()) break;
      from += utf8_step(text.substr(from)).length;
    }
  }
  return out.append(text.substr(done));
}

// A grapheme cluster that begins with a rule's text becomes the rule's content as a whole; otherwise
// the same for each of its code points. So do Hugging Face's tokenizers, and it is not what
// SentencePiece does.
std::string Normalizer::precompiled(const Step& step, std::string_view text, const Limit& limit) {
  const Charsmap& map = step.charsmap.front();
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  const auto put = [&](std::string_view part) {
    const auto rule = map.shortest(part);
    out.append(rule ? rule->content : part);
    limit.check(out);
  };
  for (size_t i = 0; i < text.size();) {
    const std::string_view grapheme = text.substr(i, grapheme_length(text.substr(i)));
    i += grapheme.size();
    if (grapheme.size() < kMaxGrapheme) {
      if (const auto rule = map.shortest(grapheme)) {
        out.append(rule->content);
        limit.check(out);
        continue;
      }
    }
    for (size_t k = 0; k < grapheme.size();) {
      const size_t length = utf8_step(grapheme.substr(k)).length;
      put(grapheme.substr(k, length));
      k += length;
    }
  }
  return out;
}

// SentencePiece, normalizer.cc: the longest rule at each place, then the rules for white space.
std::string Normalizer::sentencepiece(const Step& step, std::string_view text,
                                      const Limit& limit) const {
  const TokenizerSpec::Normalize& rule = step.rule;
  const Charsmap& map = step.charsmap.front();
  const std::string_view space = rule.escape_whitespaces ? kMark : " ";
  const auto next = [&](std::string_view rest) {
    if (fixed_ != nullptr) {
      if (const size_t length = fixed_->longest_at(rest)) {
        return Charsmap::Rule{length, rest.substr(0, length)};
      }
    }
    if (const auto found = map.longest(rest)) return *found;
    const size_t length = utf8_step(rest).length;
    return Charsmap::Rule{length, rest.substr(0, length)};
  };
  size_t at = 0;
  while (rule.remove_extra_whitespaces && at < text.size()) {
    const Charsmap::Rule head = next(text.substr(at));
    if (head.content != " ") break;
    at += head.length;
  }
  std::string out;
  if (at == text.size()) return out;
  out.reserve(text.size() + text.size() / 2);
  if (rule.dummy_prefix && !rule.whitespace_as_suffix) out.append(space);
  bool after_space = rule.remove_extra_whitespaces;
  while (at < text.size()) {
    Charsmap::Rule head = next(text.substr(at));
    while (after_space && head.content.starts_with(' ')) head.content.remove_prefix(1);
    for (const char c : head.content) {
      if (c == ' ') {
        out.append(space);
      } else {
        out.push_back(c);
      }
    }
    if (!head.content.empty()) after_space = head.content.ends_with(' ');
    if (!rule.remove_extra_whitespaces) after_space = false;
    at += head.length;
    limit.check(out);
  }
  while (rule.remove_extra_whitespaces && out.ends_with(space)) {
    out.erase(out.size() - space.size());
  }
  if (rule.dummy_prefix && rule.whitespace_as_suffix) out.append(space);
  return out;
}

}  // namespace trireme
