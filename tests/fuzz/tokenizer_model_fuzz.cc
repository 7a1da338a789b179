// tokenizer.model: SentencePiece's, with its charsmap, or ranks.
#include "runtime/tokenizer_ranks.h"
#include "runtime/tokenizer_sentencepiece.h"
#include "tests/fuzz/fuzz_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trireme;
  return fuzz::run([&] {
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    if (is_ranks(bytes)) read_ranks(bytes, "tokenizer.model");
    fuzz::use(tokenizer_spec_of(read_sentencepiece(bytes, "tokenizer.model"), false, false));
  });
}
