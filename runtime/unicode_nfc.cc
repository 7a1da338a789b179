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

}  // namespace

std::string nfc(std::string_view text) {
  if (!may_change(text)) return std::string(text);
  std::vector<utf8proc_int32_t> points = decompose(text);
  sort_marks(points);
  const auto length =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  if (length < 0) fail(ErrorCode::kInternal, "utf8proc: {}", utf8proc_errmsg(length));
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < length; ++i) append_utf8(out, static_cast<char32_t>(points[i]));
  return out;
}

}  // namespace trireme
