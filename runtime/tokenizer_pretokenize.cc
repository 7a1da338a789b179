#include "runtime/tokenizer_pretokenize.h"

#include <algorithm>

#include "base/error.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

using Kind = TokenizerSpec::Split::Kind;

constexpr size_t kMaxSteps = 64;

bool is_regex(Kind kind) {
  return kind != Kind::kDigitsIndividual && kind != Kind::kDigitsContiguous &&
         kind != Kind::kPrefixSpace && kind != Kind::kMetaspace;
}

void put(std::vector<std::string_view>& out, std::string_view piece) {
  if (!piece.empty()) out.push_back(piece);
}

// A part of a piece, and whether the pattern matched it.
struct Part {
  size_t begin;
  size_t end;
  bool match;
};

// Calls body(Part) for what matches and what lies between, in order. As in Oniguruma's iteration an
// empty match cuts, but not right after another match.
template <typename Body>
void for_each_part(const Regex& regex, std::string_view piece, Regex::Scratch& scratch,
                   const Body& body) {
  size_t done = 0;
  for (size_t from = 0; from <= piece.size();) {
    const auto match = regex.find(piece, from, scratch);
    if (!match) break;
    const bool empty = match->begin == match->end;
    if (!empty || match->begin != done) {
      if (done < match->begin) body(Part{done, match->begin, false});
      body(Part{match->begin, match->end, true});
      done = match->end;
    }
    from = match->end;
    if (empty) from += from < piece.size() ? utf8_step(piece.substr(from)).length : 1;
  }
  if (done < piece.size()) body(Part{done, piece.size(), false});
}

// Joins parts as the behaviour says; a part whose `match` is left true is dropped.
std::vector<Part> join(const std::vector<Part>& parts, Kind kind) {
  std::vector<Part> joined;
  bool match_before = false;
  const auto add = [&](const Part& part) {
    const bool onto =
        kind == Kind::kRegexContiguous ? part.match == match_before : part.match && !match_before;
    match_before = part.match;
    if (!onto || joined.empty()) {
      joined.push_back({part.begin, part.end, false});
    } else if (kind == Kind::kRegexMergedWithNext) {
      joined.back().begin = part.begin;
    } else {
      joined.back().end = part.end;
    }
  };
  if (kind != Kind::kRegexMergedWithNext) {
    for (const Part& part : parts) add(part);
    return joined;
  }
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) add(*part);
  return {joined.rbegin(), joined.rend()};
}

void split_regex(const Regex& regex, Kind kind, bool invert, std::string_view piece,
                 PreTokenizer::Scratch& scratch) {
  const auto put_part = [&](const Part& part) {
    put(scratch.next, piece.substr(part.begin, part.end - part.begin));
  };
  if (kind == Kind::kRegexIsolated) {
    for_each_part(regex, piece, scratch.regex, put_part);
    return;
  }
  std::vector<Part> parts;
  for_each_part(regex, piece, scratch.regex, [&](Part part) {
    part.match = part.match != invert;
    parts.push_back(part);
  });
  if (kind != Kind::kRegexRemoved) parts = join(parts, kind);
  for (const Part& part : parts) {
    if (!part.match) put_part(part);
  }
}

void split_digits(std::string_view piece, bool individual, std::vector<std::string_view>& out) {
  size_t begin = 0;
  bool digit_before = false;
  for (size_t i = 0; i < piece.size();) {
    const Utf8Step step = utf8_step(piece.substr(i));
    const bool digit = is_numeric(step.code_point);
    if (digit != digit_before || (digit && individual)) {
      put(out, piece.substr(begin, i - begin));
      begin = i;
    }
    digit_before = digit;
    i += step.length;
  }
  put(out, piece.substr(begin));
}

}  // namespace

PreTokenizer::PreTokenizer(const std::vector<TokenizerSpec::Split>& splits) {
  if (splits.size() > kMaxSteps) {
    fail(ErrorCode::kDataLoss, "{} pre-tokenizers; at most {}", splits.size(), kMaxSteps);
  }
  for (const TokenizerSpec::Split& split : splits) {
    Step step{split, {}};
    if (is_regex(split.kind)) step.regex.emplace_back(split.pattern);
    steps_.push_back(std::move(step));
  }
}

const std::vector<std::string_view>& PreTokenizer::split(std::string_view text, bool at_start,
                                                         Scratch& scratch) const {
  scratch.made.clear();
  scratch.pieces.clear();
  put(scratch.pieces, text);
  bool first = at_start;  // the first piece is where the whole text begins
  for (const Step& step : steps_) {
    scratch.next.clear();
    bool leading = first;
    for (const std::string_view piece : scratch.pieces) {
      const size_t before = scratch.next.size();
      run(step, piece, leading, scratch);
      if (!leading) continue;
      leading = false;
      // A piece that the step dropped or cut at the front was the beginning.
      const bool kept = scratch.next.size() > before &&
                        (is_regex(step.rule.kind) ? scratch.next[before].data() == piece.data()
                                                  : true);
      first = kept;
    }
    scratch.pieces.swap(scratch.next);
  }
  return scratch.pieces;
}

void PreTokenizer::run(const Step& step, std::string_view piece, bool first, Scratch& scratch) {
  switch (step.rule.kind) {
    case Kind::kPrefixSpace:
      if (!piece.starts_with(' ')) piece = scratch.made.emplace_back(" ").append(piece);
      scratch.next.push_back(piece);
      return;
    case Kind::kDigitsIndividual: split_digits(piece, true, scratch.next); return;
    case Kind::kDigitsContiguous: split_digits(piece, false, scratch.next); return;
    case Kind::kMetaspace: metaspace(step.rule, piece, first, scratch); return;
    default:
      split_regex(step.regex.front(), step.rule.kind, step.rule.invert, piece, scratch);
      return;
  }
}

void PreTokenizer::metaspace(const TokenizerSpec::Split& rule, std::string_view piece, bool first,
                             Scratch& scratch) {
  using Prepend = TokenizerSpec::Split::Prepend;
  const std::string& mark = rule.pattern;
  std::string& made = scratch.made.emplace_back();
  made.reserve(piece.size() + piece.size() / 2 + mark.size());
  const bool wanted =
      rule.prepend == Prepend::kAlways || (rule.prepend == Prepend::kFirst && first);
  if (wanted && !piece.starts_with(' ') && !piece.starts_with(mark)) made += mark;
  for (const char c : piece) {
    if (c == ' ') {
      made += mark;
    } else {
      made += c;
    }
  }
  if (!rule.cut) {
    put(scratch.next, made);
    return;
  }
  const std::string_view text = made;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find(mark, begin + 1), text.size());
    put(scratch.next, text.substr(begin, end - begin));
    begin = end;
  }
}

}  // namespace trireme
