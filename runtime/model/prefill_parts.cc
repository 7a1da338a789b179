#include "runtime/model/prefill_parts.h"

#include <algorithm>
#include <cstdlib>

#include "base/error.h"

namespace trireme {
namespace {

// Rows of a matrix product's tile: a part that ends within one wastes the rest of it.
constexpr int64_t kTileRows = 128;

}  // namespace

PrefillParts PrefillParts::from_environment() {
  const char* value = std::getenv("TRIREME_PREFILL_PARTS");
  const std::string named = value == nullptr ? "" : value;
  if (named.empty() || named == "auto") return {};
  if (named == "off") return PrefillParts(std::vector<Choice>{});
  if (named == "on") return PrefillParts({Choice{0, 4, 0.0, 0.0}});
  fail(ErrorCode::kInvalidArgument, "TRIREME_PREFILL_PARTS: '{}' is not auto, on or off", named);
}

int64_t PrefillParts::cut(int64_t tokens) const {
  const auto after = std::find_if(choices_.begin(), choices_.end(),
                                  [tokens](const Choice& one) { return one.tokens > tokens; });
  if (after == choices_.begin() || tokens < 2) return 0;
  const int eighths = std::prev(after)->eighths;
  if (eighths == 0) return 0;
  int64_t cut = tokens * eighths / 8;
  if (cut >= 2 * kTileRows) cut = (cut + kTileRows / 2) / kTileRows * kTileRows;
  return std::clamp<int64_t>(cut, 1, tokens - 1);
}

std::vector<std::string> PrefillParts::describe() const {
  std::vector<std::string> lines;
  for (const Choice& one : choices_) {
    std::string line = fmt::format("prefill from {} tokens on: ", one.tokens);
    line += one.eighths == 0 ? "whole" : fmt::format("cut at {}/8", one.eighths);
    if (one.whole > 0) {
      line += fmt::format(" (a few layers: whole {:.3f} ms, best cut {:.3f} ms)", one.whole * 1e3,
                          one.cut * 1e3);
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace trireme
