// UTF-8 and Unicode as the tokenizer needs them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace trireme {

// What the bytes at the head of `text` are. `length` is the bytes of one code point, of one maximal
// subpart of a broken sequence (Unicode chapter 3, "U+FFFD substitution of maximal subparts"), or
// of a sequence that is well-formed so far and ends with the text.
struct Utf8Step {
  enum class Kind { kWhole, kBroken, kUnfinished };
  Kind kind;
  uint32_t length;
  char32_t code_point;  // kWhole only
};
Utf8Step utf8_step(std::string_view text);  // text is not empty

// The byte offset of the first byte that is not part of whole UTF-8.
std::optional<size_t> find_invalid_utf8(std::string_view text);

void append_utf8(std::string& out, char32_t code_point);

// Appends `bytes` with every broken sequence (or every byte of one, if `bytewise`) replaced by one
// U+FFFD. Unless `last`, a sequence that the end cuts off is left alone. Returns the bytes consumed.
size_t append_lossy_utf8(std::string& out, std::string_view bytes, bool last,
                         bool bytewise = false);

// A normalization form of valid UTF-8, with the data of Unicode 9 as in Hugging Face's tokenizers.
// Takes O(n log n) whatever the text.
enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };
std::string normalized(std::string_view text, UnicodeForm form);
std::string nfc(std::string_view text);

// Appends the lower case of one code point, out of context (Rust's char::to_lowercase).
void append_lowercase(std::string& out, char32_t code_point);

// Whether a grapheme cluster ends between two code points; `state` is 0 at the first pair.
bool breaks_grapheme(char32_t before, char32_t after, int32_t& state);

// Code points assigned after Unicode 14 and up to Unicode 16, with their general category: what
// the PCRE2 of Debian 12 lacks and the regex engine of Hugging Face's tokenizers has.
struct UnicodeAddition {
  char32_t first;
  char32_t last;
  char category[3];
};
std::span<const UnicodeAddition> unicode_additions();

// The general category is Nd, Nl or No (Unicode 17, as Rust's char::is_numeric has it).
bool is_numeric(char32_t code_point);

// The property White_Space.
bool is_white_space(char32_t code_point);

}  // namespace trireme
