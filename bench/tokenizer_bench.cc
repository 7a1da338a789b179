// The tokenizer on one core: encode, decode and streamed decode, in CPU seconds, best of five.
//   tokenizer_bench PATH TEXT…     a tokenizer's file or folder, and files of text
// One JSON object a text: {tokenizer, text, bytes, ids, encode_mb_s, decode_mb_s, stream_ns_per_id}.
// bench/tokenizer_suite.py makes the texts and measures other tokenizers beside it.
#include <fmt/core.h>
#include <time.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "base/error.h"
#include "runtime/tokenizer_folder.h"

namespace trireme {
namespace {

constexpr int kRounds = 5;

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double seconds_of(const std::function<void()>& body) {
  double best = 1e9;
  for (int i = 0; i < kRounds; ++i) {
    const double begin = cpu_seconds();
    body();
    best = std::min(best, cpu_seconds() - begin);
  }
  return best;
}

void measure(const Tokenizer& tokenizer, const std::string& name, const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream read;
  read << in.rdbuf();
  const std::string text = read.str();
  std::vector<int32_t> ids;
  const double encode = seconds_of([&] { ids = tokenizer.encode(text, false); });
  const double decode = seconds_of([&] { tokenizer.decode(ids); });
  const double stream = seconds_of([&] {
    StreamingDetokenizer detokenizer(tokenizer);
    for (const int32_t id : ids) detokenizer.push(id);
  });
  const auto size = static_cast<double>(text.size()) / 1e6;
  fmt::print(
      "{{\"tokenizer\": \"{}\", \"text\": \"{}\", \"bytes\": {}, \"ids\": {}, "
      "\"encode_mb_s\": {:.3f}, \"decode_mb_s\": {:.3f}, \"stream_ns_per_id\": {:.1f}}}\n",
      name, std::filesystem::path(path).stem().string(), text.size(), ids.size(), size / encode,
      size / decode, stream / static_cast<double>(std::max<size_t>(ids.size(), 1)) * 1e9);
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  if (argc < 3) {
    fmt::print(stderr, "tokenizer_bench PATH TEXT...\n");
    return 2;
  }
  try {
    const trireme::Tokenizer tokenizer(trireme::read_tokenizer(argv[1]));
    for (int i = 2; i < argc; ++i) trireme::measure(tokenizer, argv[1], argv[i]);
  } catch (const trireme::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
