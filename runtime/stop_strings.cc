#include "runtime/stop_strings.h"

#include <algorithm>
#include <utility>

namespace trireme {

StopStrings::StopStrings(std::vector<std::string> strings, bool include) : include_(include) {
  for (std::string& text : strings) {
    std::vector<uint32_t> failure(text.size(), 0);
    uint32_t border = 0;
    for (size_t i = 1; i < text.size(); ++i) {
      while (border > 0 && text[i] != text[border]) border = failure[border - 1];
      if (text[i] == text[border]) ++border;
      failure[i] = border;
    }
    patterns_.push_back({std::move(text), std::move(failure)});
  }
}

bool StopStrings::Pattern::push(char byte) {
  while (matched > 0 && text[matched] != byte) matched = failure[matched - 1];
  if (text[matched] == byte) ++matched;
  return matched == text.size();
}

int StopStrings::push(std::string_view piece, std::string& out) {
  if (patterns_.empty()) {
    out += piece;
    return -1;
  }
  held_ += piece;
  const size_t before = held_.size() - piece.size();
  for (size_t i = 0; i < piece.size(); ++i) {
    int found = -1;
    for (size_t p = 0; p < patterns_.size(); ++p) {
      if (!patterns_[p].push(piece[i])) continue;
      if (found < 0 || patterns_[p].text.size() > patterns_[found].text.size()) {
        found = static_cast<int>(p);
      }
    }
    if (found < 0) continue;
    const size_t end = before + i + 1;
    // With include_, what was released before is not in held_: all of it up to `end` is due.
    const size_t cut = include_ ? end : end - patterns_[found].text.size();
    out.append(held_, 0, cut);
    held_.clear();
    return found;
  }
  uint32_t keep = 0;
  if (!include_) {
    for (const Pattern& pattern : patterns_) keep = std::max(keep, pattern.matched);
  }
  out.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return -1;
}

void StopStrings::finish(std::string& out) {
  out += held_;
  held_.clear();
}

}  // namespace trireme
