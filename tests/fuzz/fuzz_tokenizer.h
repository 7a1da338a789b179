// What every tokenizer target does with a file that was read.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>

#include "runtime/tokenizer.h"
#include "runtime/unicode.h"
#include "tests/fuzz/fuzz_file.h"

namespace trireme::fuzz {

inline constexpr const char* kText =
    "Hello, w\u00f6rld! 12345 \u4e00\u4e8c  \n\t<s>[INST]\u2581\u2581a\u0308\u0323 "
    "\U0001F468\u200d\U0001F469 <0x41> "
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

// Ids are ids, and streamed text is whole UTF-8 that joins to what decode() gives.
inline void use(TokenizerSpec spec, const std::string& text = kText) {
  const Tokenizer tokenizer(std::move(spec));
  const auto ids = tokenizer.encode(text);
  for (const int32_t id : ids) {
    if (id < 0 || id >= tokenizer.vocab_size()) std::abort();
  }
  StreamingDetokenizer stream(tokenizer, false);
  std::string joined;
  for (const int32_t id : ids) {
    const std::string piece = stream.push(id);
    if (find_invalid_utf8(piece)) std::abort();
    joined += piece;
  }
  if (joined + stream.finish() != tokenizer.decode(ids, false)) std::abort();
}

}  // namespace trireme::fuzz
