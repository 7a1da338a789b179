#include "runtime/charsmap.h"

#include <cstring>

#include "base/error.h"

namespace trireme {
namespace {

// A rule's text; a trie may have a cycle, and then there are matches of any length.
constexpr size_t kMaxRule = 256;

bool has_leaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t value_of(uint32_t unit) { return unit & 0x7FFFFFFF; }
uint32_t label_of(uint32_t unit) { return unit & (0x80000000u | 0xFF); }
uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & 1u << 9) >> 6); }

}  // namespace

Charsmap::Charsmap(std::string_view blob, const std::string& source) {
  if (blob.empty()) return;
  uint32_t bytes = 0;
  if (blob.size() >= sizeof bytes) std::memcpy(&bytes, blob.data(), sizeof bytes);
  if (bytes == 0 || bytes % sizeof(uint32_t) != 0 || bytes > blob.size() - sizeof bytes) {
    fail(ErrorCode::kDataLoss, "{}: the precompiled charsmap of {} bytes has a trie of {}", source,
         blob.size(), bytes);
  }
  units_.resize(bytes / sizeof(uint32_t));
  std::memcpy(units_.data(), blob.data() + sizeof bytes, bytes);
  contents_ = blob.substr(sizeof bytes + bytes);
}

std::optional<Charsmap::Rule> Charsmap::find(std::string_view text, bool longest) const {
  if (units_.empty()) return std::nullopt;
  std::optional<Rule> rule;
  size_t at = offset_of(units_[0]);
  for (size_t i = 0; i < text.size() && i < kMaxRule; ++i) {
    at ^= static_cast<uint8_t>(text[i]);
    if (at >= units_.size()) break;
    const uint32_t unit = units_[at];
    if (label_of(unit) != static_cast<uint8_t>(text[i])) break;
    at ^= offset_of(unit);
    if (!has_leaf(unit)) continue;
    if (at >= units_.size()) break;
    const size_t begin = value_of(units_[at]);
    if (begin > contents_.size()) break;
    rule = {i + 1, std::string_view(contents_.c_str() + begin)};
    if (!longest) break;
  }
  return rule;
}

}  // namespace trireme
