#include "runtime/unicode.h"

namespace trireme {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// The bytes of the sequence that `lead` begins and the bounds of its second byte; 0 if it cannot
// begin one. Table 3-7 of the Unicode standard.
struct Lead {
  uint32_t length;
  uint8_t second_min;
  uint8_t second_max;
};

Lead lead_of(uint8_t lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};
  if (lead < 0xF0) return {3, 0x80, 0xBF};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4, 0x80, 0xBF};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Step utf8_step(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const Lead lead = lead_of(byte(0));
  if (lead.length == 0) return {Utf8Step::Kind::kBroken, 1, 0};
  if (lead.length == 1) return {Utf8Step::Kind::kWhole, 1, byte(0)};
  char32_t code_point = byte(0) & (0x7Fu >> lead.length);
  for (uint32_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {Utf8Step::Kind::kUnfinished, i, 0};
    const uint8_t low = i == 1 ? lead.second_min : 0x80;
    const uint8_t high = i == 1 ? lead.second_max : 0xBF;
    if (byte(i) < low || byte(i) > high) return {Utf8Step::Kind::kBroken, i, 0};
    code_point = code_point << 6 | (byte(i) & 0x3F);
  }
  return {Utf8Step::Kind::kWhole, lead.length, code_point};
}

std::optional<size_t> find_invalid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    if (static_cast<uint8_t>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Step step = utf8_step(text.substr(i));
    if (step.kind != Utf8Step::Kind::kWhole) return i;
    i += step.length;
  }
  return std::nullopt;
}

void append_utf8(std::string& out, char32_t code_point) {
  const auto put = [&](char32_t bits) { out.push_back(static_cast<char>(bits)); };
  if (code_point < 0x80) {
    put(code_point);
    return;
  }
  if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
  } else {
    if (code_point < 0x10000) {
      put(0xE0 | code_point >> 12);
    } else {
      put(0xF0 | code_point >> 18);
      put(0x80 | (code_point >> 12 & 0x3F));
    }
    put(0x80 | (code_point >> 6 & 0x3F));
  }
  put(0x80 | (code_point & 0x3F));
}

size_t append_lossy_utf8(std::string& out, std::string_view bytes, bool last, bool bytewise) {
  size_t i = 0;
  while (i < bytes.size()) {
    const Utf8Step step = utf8_step(bytes.substr(i));
    if (step.kind == Utf8Step::Kind::kUnfinished && !last) break;
    if (step.kind == Utf8Step::Kind::kWhole) {
      out.append(bytes.substr(i, step.length));
    } else {
      for (uint32_t n = bytewise ? step.length : 1; n > 0; --n) out.append(kReplacement);
    }
    i += step.length;
  }
  return i;
}

}  // namespace trireme
