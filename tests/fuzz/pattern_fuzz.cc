// Pre-tokenizer patterns: the first line is a pattern of a file, the rest a text that it cuts; and
// the text is cut by the patterns that are built in. Pieces must join to the text.
#include <algorithm>

#include "runtime/tokenizer_patterns.h"
#include "runtime/tokenizer_pretokenize.h"
#include "tests/fuzz/fuzz_tokenizer.h"

namespace {

void cut(const std::string& pattern, std::string_view text) {
  using namespace trireme;
  const PreTokenizer pre({{TokenizerSpec::Split::Kind::kRegexIsolated, pattern}});
  PreTokenizer::Scratch scratch;
  std::string joined;
  for (const std::string_view piece : pre.split(text, true, scratch)) joined += piece;
  if (joined != text) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trireme;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t line = std::min(input.find('\n'), input.size());
  const std::string_view text = input.substr(std::min(line + 1, input.size()));
  if (find_invalid_utf8(input)) return 0;
  fuzz::run([&] { cut(std::string(input.substr(0, line)), text); });
  for (const char* pattern : {kGpt2Pattern, kLlama3Pattern, kQwen2Pattern, kTekkenPattern}) {
    cut(pattern, text);  // these never fail
  }
  return 0;
}
