#include "runtime/tokenizer_added.h"

#include <algorithm>

#include "base/error.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

constexpr size_t kMaxTokenBytes = 1 << 10;  // a search may take so many steps per byte

// The code point that ends at `end`.
std::string_view last_code_point(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin, end - begin);
}

bool is_space(std::string_view code_point) {
  return is_white_space(utf8_step(code_point).code_point);
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(const std::vector<AddedToken>& tokens, bool normalized,
                                     const Normalize& normalize) {
  std::fill(std::begin(roots_), std::end(roots_), -1);
  for (const AddedToken& token : tokens) {
    if (token.normalized != normalized || token.text.empty()) continue;
    if (token.text.size() > kMaxTokenBytes) {
      fail(ErrorCode::kDataLoss, "added token {} has {} bytes; at most {}", token.id,
           token.text.size(), kMaxTokenBytes);
    }
    const std::string text = normalize ? normalize(token.text) : token.text;
    if (text.empty()) continue;
    insert(text, static_cast<int32_t>(tokens_.size()));
    tokens_.push_back({token.id, token.single_word, token.lstrip, token.rstrip});
    // Rust's \w: Oniguruma's less some superscripts and fractions, and with the two joiners.
    if (token.single_word && !word_)
      word_.emplace("(?![\\xb2\\xb3\\xb9\\xbc-\\xbe])[\\w\\x{200c}\\x{200d}]");
  }
}

void AddedTokenMatcher::insert(std::string_view text, int32_t token) {
  int32_t* link = &roots_[static_cast<uint8_t>(text.front())];
  int32_t node = -1;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    if (i > 0) {
      link = &nodes_[node].child;
      while (*link >= 0 && nodes_[*link].byte != byte) link = &nodes_[*link].sibling;
    }
    if (*link < 0) {
      *link = static_cast<int32_t>(nodes_.size());
      node = *link;  // the push may move *link
      nodes_.push_back({-1, -1, -1, byte});
    } else {
      node = *link;
    }
  }
  if (nodes_[node].token < 0) nodes_[node].token = token;
}

int32_t AddedTokenMatcher::child_of(int32_t node, uint8_t byte) const {
  int32_t child = nodes_[node].child;
  while (child >= 0 && nodes_[child].byte != byte) child = nodes_[child].sibling;
  return child;
}

std::optional<AddedTokenMatcher::Found> AddedTokenMatcher::find(std::string_view text,
                                                                size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    int32_t node = roots_[static_cast<uint8_t>(text[begin])];
    std::optional<Found> longest;
    for (size_t end = begin + 1; node >= 0; ++end) {
      if (nodes_[node].token >= 0) longest = Found{begin, end, &tokens_[nodes_[node].token]};
      if (end == text.size()) break;
      node = child_of(node, static_cast<uint8_t>(text[end]));
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

size_t AddedTokenMatcher::longest_at(std::string_view text) const {
  if (text.empty()) return 0;
  size_t longest = 0;
  int32_t node = roots_[static_cast<uint8_t>(text.front())];
  for (size_t end = 1; node >= 0; ++end) {
    if (nodes_[node].token >= 0) longest = end;
    if (end == text.size()) break;
    node = child_of(node, static_cast<uint8_t>(text[end]));
  }
  return longest;
}

bool AddedTokenMatcher::stands_alone(std::string_view text, const Found& found,
                                     Regex::Scratch& scratch) const {
  const auto is_word = [&](std::string_view code_point) {
    return word_->find(code_point, 0, scratch).has_value();
  };
  if (found.begin > 0 && is_word(last_code_point(text, found.begin))) return false;
  if (found.end == text.size()) return true;
  return !is_word(text.substr(found.end, utf8_step(text.substr(found.end)).length));
}

void AddedTokenMatcher::split(std::string_view text, Regex::Scratch& scratch,
                              std::vector<Part>& parts) const {
  size_t done = 0;
  size_t from = 0;
  while (const auto found = find(text, from)) {
    from = found->end;
    if (found->token->single_word && !stands_alone(text, *found, scratch)) continue;
    size_t begin = found->begin;
    size_t end = found->end;
    while (found->token->lstrip && begin > done && is_space(last_code_point(text, begin))) {
      begin -= last_code_point(text, begin).size();
    }
    while (found->token->rstrip && end < text.size() && is_space(text.substr(end))) {
      end += utf8_step(text.substr(end)).length;
    }
    if (done < begin) parts.push_back({text.substr(done, begin - done), -1});
    parts.push_back({text.substr(begin, end - begin), found->token->id});
    done = end;
  }
  if (done < text.size()) parts.push_back({text.substr(done), -1});
}

}  // namespace trireme
