// The tokenizer on one core: MB/s on ordinary text, and how much longer hostile text of the same
// size takes. `tokenizer_bench [NAME…]` measures the tokenizers of tests/fixtures/tokenizer.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "runtime/unicode.h"
#include "tests/unit/tokenizer_fixture.h"

namespace trireme {
namespace {

constexpr size_t kBytes = 1 << 20;

double seconds_of(const std::function<void()>& body) {
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    best = std::min(best, time.count());
  }
  return best;
}

bool is_ordinary(const std::string& text) {
  const auto letters = std::count_if(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == ' ';
  });
  return text.size() > 80 && static_cast<size_t>(letters) + 4 > text.size() &&
         text.substr(0, 40) != std::string(40, text[0]);
}

std::string repeated(const std::vector<std::string>& units) {
  std::string text;
  for (size_t i = 0; text.size() < kBytes; ++i) text += units[i % units.size()];
  return text;
}

void measure(const std::string& name) {
  const Tokenizer tokenizer = test::fixture_tokenizer(name);
  std::vector<std::string> records = test::corpus();
  const double mixed = seconds_of([&] {
    for (const std::string& record : records) tokenizer.encode(record);
  });
  size_t mixed_bytes = 0;
  for (const std::string& record : records) mixed_bytes += record.size();
  std::erase_if(records, [](const std::string& text) { return !is_ordinary(text); });
  for (std::string& record : records) record += ' ';
  const std::string text = repeated(records);
  std::vector<int32_t> ids;
  const double ordinary = seconds_of([&] { ids = tokenizer.encode(text, false); });
  const double decode = seconds_of([&] { tokenizer.decode(ids); });
  const double stream = seconds_of([&] {
    StreamingDetokenizer detokenizer(tokenizer);
    for (const int32_t id : ids) detokenizer.push(id);
  });
  const double size = static_cast<double>(text.size());
  fmt::print(
      "{}: encode {:.1f} MB/s on English-like text ({:.2f} bytes per token), {:.1f} MB/s on "
      "the mixed corpus; decode {:.0f} MB/s, streamed {:.0f} ns per token\n",
      name, size / ordinary / 1e6, size / static_cast<double>(ids.size()),
      static_cast<double>(mixed_bytes) / mixed / 1e6, size / decode / 1e6,
      stream / static_cast<double>(ids.size()) * 1e9);
  const std::pair<const char*, const char*> hostile[] = {{"one letter", "a"},
                                                         {"spaces", " "},
                                                         {"newlines", "\n"},
                                                         {"zero-width joiners", "\u200d"},
                                                         {"joined emoji", "\U0001F468\u200d"},
                                                         {"digits", "7"},
                                                         {"combining marks", "\u0308\u0323"},
                                                         {"ideograph", "\u4e00"},
                                                         {"cut special", "<|im_start"}};
  for (const auto& [what, unit] : hostile) {
    const std::string bad = repeated({unit}) + "x";
    const double time = seconds_of([&] { tokenizer.encode(bad, false); });
    fmt::print("  {:<20} {:6.1f} ms, {:5.2f} x ordinary\n", what, time * 1e3, time / ordinary);
  }
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  std::vector<std::string> names(argv + 1, argv + argc);
  if (names.empty()) names = {"smollm2", "llama3", "qwen2"};
  for (const std::string& name : names) trireme::measure(name);
}
