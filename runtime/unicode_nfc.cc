// Normalization form C on utf8proc's data. utf8proc's own reordering of combining marks is
// quadratic in their number, so the marks are sorted here and utf8proc only decomposes and
// composes.
#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

constexpr char32_t kFirstChangeable = 0x300;  // below it every code point is its own NFC, always

// Combining and composing code points of Unicode 10 to 15. The normalizer inside Hugging Face's
// tokenizers (0.23) has the data of Unicode 9, to which they are ordinary: nothing is reordered
// across them and nothing composes with them.
constexpr struct {
  char32_t first;
  char32_t last;
} kInert[] = {
    // clang-format off
    {0x7FD, 0x7FD}, {0x898, 0x89F}, {0x8CA, 0x8D3}, {0x9FE, 0x9FE},
    {0xC3C, 0xC3C}, {0xD3B, 0xD3C}, {0xEBA, 0xEBA}, {0x1715, 0x1715},
    {0x1ABF, 0x1ACE}, {0x1DF6, 0x1DFA}, {0xA82C, 0xA82C}, {0x10D24, 0x10D27},
    {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
    {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943},
    {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99},
    {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42},
    {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE},
    {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
    // clang-format on
};

bool is_inert(char32_t code_point) {
  const auto* row =
      std::upper_bound(std::begin(kInert), std::end(kInert), code_point,
                       [](char32_t point, const auto& range) { return point <= range.last; });
  return row != std::end(kInert) && row->first <= code_point;
}

bool may_change(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text.substr(i));
    if (step.code_point >= kFirstChangeable) return true;
    i += step.length;
  }
  return false;
}

std::vector<utf8proc_int32_t> decompose(std::string_view text) {
  std::vector<utf8proc_int32_t> out;
  out.reserve(text.size() + 4);
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text.substr(i));
    i += step.length;
    utf8proc_int32_t parts[32];
    int boundary = 0;
    const auto count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(step.code_point), parts, std::size(parts),
        static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE), &boundary);
    if (count < 0 || count > static_cast<utf8proc_ssize_t>(std::size(parts))) {
      fail(ErrorCode::kInternal, "utf8proc cannot decompose U+{:04X}",
           static_cast<uint32_t>(step.code_point));
    }
    out.insert(out.end(), parts, parts + count);
  }
  return out;
}

int combining_class(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

void sort_marks(std::vector<utf8proc_int32_t>& points) {
  for (auto begin = points.begin(); begin != points.end();) {
    if (combining_class(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end =
        std::find_if(begin, points.end(), [](auto p) { return combining_class(p) == 0; });
    std::stable_sort(begin, end,
                     [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
}

// Appends the NFC of text without inert code points.
void append_nfc(std::string& out, std::string_view text) {
  if (!may_change(text)) {
    out.append(text);
    return;
  }
  std::vector<utf8proc_int32_t> points = decompose(text);
  sort_marks(points);
  const auto length =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  if (length < 0) fail(ErrorCode::kInternal, "utf8proc: {}", utf8proc_errmsg(length));
  for (utf8proc_ssize_t i = 0; i < length; ++i) append_utf8(out, static_cast<char32_t>(points[i]));
}

}  // namespace

std::string nfc(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text.substr(i));
    if (is_inert(step.code_point)) {
      append_nfc(out, text.substr(begin, i - begin));
      out.append(text.substr(i, step.length));
      begin = i + step.length;
    }
    i += step.length;
  }
  append_nfc(out, text.substr(begin));
  return out;
}

}  // namespace trireme
