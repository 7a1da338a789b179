// Normalization forms on utf8proc's data. utf8proc's own reordering of combining marks is
// quadratic in their number, so the marks are sorted here and utf8proc only decomposes and
// composes.
#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

// Below it every code point is its own form, always.
char32_t first_changeable(UnicodeForm form) {
  switch (form) {
    case UnicodeForm::kNfc: return 0x300;
    case UnicodeForm::kNfd: return 0xC0;
    default: return 0xA0;
  }
}

// Combining, composing and decomposing code points of Unicode 10 to 15. The normalizer inside Hugging Face's
// tokenizers (0.23) has the data of Unicode 9, to which they are ordinary: nothing is reordered
// across them and nothing composes with them.
constexpr struct {
  char32_t first;
  char32_t last;
} kInert[] = {
    // clang-format off
    {0x7FD, 0x7FD}, {0x898, 0x89F}, {0x8CA, 0x8D3}, {0x9FE, 0x9FE},
    {0xC3C, 0xC3C}, {0xD3B, 0xD3C}, {0xEBA, 0xEBA}, {0x1715, 0x1715},
    {0x1ABF, 0x1ACE}, {0x1DF6, 0x1DFA}, {0x32FF, 0x32FF}, {0xA7F2, 0xA7F4},
    {0xA82C, 0xA82C}, {0xAB69, 0xAB69}, {0x10781, 0x10785}, {0x10787, 0x107B0},
    {0x107B2, 0x107BA}, {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
    {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11930}, {0x11938, 0x11938},
    {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34},
    {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E030, 0x1E06D},
    {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF},
    {0x1E4EC, 0x1E4EF}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9},
    // clang-format on
};

bool is_inert(char32_t code_point) {
  const auto* row =
      std::upper_bound(std::begin(kInert), std::end(kInert), code_point,
                       [](char32_t point, const auto& range) { return point <= range.last; });
  return row != std::end(kInert) && row->first <= code_point;
}

bool may_change(std::string_view text, UnicodeForm form) {
  const char32_t first = first_changeable(form);
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text.substr(i));
    if (step.code_point >= first) return true;
    i += step.length;
  }
  return false;
}

std::vector<utf8proc_int32_t> decompose(std::string_view text, int options) {
  std::vector<utf8proc_int32_t> out;
  out.reserve(text.size() + 4);
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text.substr(i));
    i += step.length;
    utf8proc_int32_t parts[32];
    int boundary = 0;
    const auto count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(step.code_point), parts, std::size(parts),
        static_cast<utf8proc_option_t>(options), &boundary);
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

// Appends the form of text without inert code points.
void append_form(std::string& out, std::string_view text, UnicodeForm form) {
  if (!may_change(text, form)) {
    out.append(text);
    return;
  }
  const bool compatible = form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
  const bool composed = form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc;
  std::vector<utf8proc_int32_t> points = decompose(
      text, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE | (compatible ? int{UTF8PROC_COMPAT} : 0));
  sort_marks(points);
  if (composed) {
    const auto length = utf8proc_normalize_utf32(
        points.data(), static_cast<utf8proc_ssize_t>(points.size()),
        static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    if (length < 0) fail(ErrorCode::kInternal, "utf8proc: {}", utf8proc_errmsg(length));
    points.resize(static_cast<size_t>(length));
  }
  for (const auto point : points) append_utf8(out, static_cast<char32_t>(point));
}

}  // namespace

std::string normalized(std::string_view text, UnicodeForm form) {
  std::string out;
  out.reserve(text.size());
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    if (static_cast<uint8_t>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Step step = utf8_step(text.substr(i));
    if (is_inert(step.code_point)) {
      append_form(out, text.substr(begin, i - begin), form);
      out.append(text.substr(i, step.length));
      begin = i + step.length;
    }
    i += step.length;
  }
  append_form(out, text.substr(begin), form);
  return out;
}

std::string nfc(std::string_view text) { return normalized(text, UnicodeForm::kNfc); }

// Capital letters of Unicode 16 and 17, which Rust knows and the utf8proc of Debian 12 does not.
constexpr struct {
  char32_t first;
  char32_t last;
  char32_t lower;
} kNewerLower[] = {{0x1C89, 0x1C89, 0x1C8A},   {0xA7CB, 0xA7CB, 0x264},    {0xA7CC, 0xA7CC, 0xA7CD},
                   {0xA7CE, 0xA7CE, 0xA7CF},   {0xA7D2, 0xA7D2, 0xA7D3},   {0xA7D4, 0xA7D4, 0xA7D5},
                   {0xA7DA, 0xA7DA, 0xA7DB},   {0xA7DC, 0xA7DC, 0x19B},    {0x10D50, 0x10D65, 0x10D70},
                   {0x16EA0, 0x16EB8, 0x16EBB}};

void append_lowercase(std::string& out, char32_t code_point) {
  if (code_point < 0x80) {
    out.push_back(static_cast<char>(code_point >= 'A' && code_point <= 'Z' ? code_point + 32
                                                                           : code_point));
    return;
  }
  if (code_point == 0x130) {  // the only one with a longer lower case
    out += "i\u0307";
    return;
  }
  for (const auto& row : kNewerLower) {
    if (code_point >= row.first && code_point <= row.last) {
      append_utf8(out, row.lower + (code_point - row.first));
      return;
    }
  }
  append_utf8(out, static_cast<char32_t>(
                       utf8proc_tolower(static_cast<utf8proc_int32_t>(code_point))));
}

bool breaks_grapheme(char32_t before, char32_t after, int32_t& state) {
  return utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(before),
                                          static_cast<utf8proc_int32_t>(after), &state);
}

}  // namespace trireme
