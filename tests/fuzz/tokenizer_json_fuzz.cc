// tokenizer.json.
#include "tests/fuzz/fuzz_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return trireme::fuzz::run([&] {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    trireme::fuzz::use(trireme::parse_tokenizer_json(text, "tokenizer.json"));
  });
}
