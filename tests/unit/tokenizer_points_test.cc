// Every code point of Unicode, each in a short context, against Hugging Face's tokenizers.
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "runtime/unicode.h"
#include "tests/unit/tokenizer_fixture.h"

namespace trireme::test {
namespace {

constexpr char32_t kBlock = 1024;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint32_t kBlockStep = 16;  // every so-many-th block: the others add time, not paths
#else
constexpr uint32_t kBlockStep = 1;
#endif

class EveryCodePoint : public testing::TestWithParam<const char*> {};

TEST_P(EveryCodePoint, IdsInContext) {
  const Tokenizer tokenizer = fixture_tokenizer(GetParam());
  for (const std::string& line : lines(read_gz(std::string(GetParam()) + ".points"))) {
    std::istringstream in(line);
    uint32_t begin = 0, expected_crc = 0;
    size_t count = 0;
    in >> begin >> count >> expected_crc;
    if (begin / kBlock % kBlockStep != 0) continue;
    std::vector<int32_t> all;
    for (char32_t point = begin; point < begin + kBlock; ++point) {
      std::string c;
      append_utf8(c, point);
      const auto ids = tokenizer.encode("a" + c + "b " + c + " 1" + c, false);
      all.insert(all.end(), ids.begin(), ids.end());
    }
    EXPECT_TRUE(all.size() == count && crc(all) == expected_crc)
        << "block " << std::hex << begin << ": " << std::dec << all.size() << " of " << count;
  }
}

INSTANTIATE_TEST_SUITE_P(Files, EveryCodePoint, testing::Values("smollm2", "llama3", "qwen2"),
                         [](const auto& info) { return std::string(info.param); });

std::string lowercase(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    append_lowercase(out, step.code_point);
    text.remove_prefix(step.length);
  }
  return out;
}

// The four forms and lower case.
TEST(Forms, EveryCodePoint) {
  using Form = std::function<std::string(std::string_view)>;
  const auto form = [](UnicodeForm f) { return Form([f](auto text) { return normalized(text, f); }); };
  const std::map<std::string, Form> forms = {
      {"NFC", form(UnicodeForm::kNfc)},   {"NFD", form(UnicodeForm::kNfd)},
      {"NFKC", form(UnicodeForm::kNfkc)}, {"NFKD", form(UnicodeForm::kNfkd)},
      {"Lowercase", lowercase},
  };
  size_t compared = 0;
  for (const std::string& line : lines(read_gz("forms.points"))) {
    std::istringstream in(line);
    std::string name;
    uint32_t begin = 0, expected = 0;
    in >> name >> begin >> expected;
    if (begin / kBlock % kBlockStep != 0) continue;
    std::string text;
    for (char32_t point = begin; point < begin + kBlock; ++point) {
      std::string c;
      append_utf8(c, point);
      text += forms.at(name)("a" + c + "\u0323\u0301" + c + " e\u0301" + c + "\u0316\u1161\u11a8");
    }
    EXPECT_EQ(crc(text), expected) << name << " block " << std::hex << begin;
    ++compared;
  }
  EXPECT_GE(compared * kBlockStep, 5000u);
}

}  // namespace
}  // namespace trireme::test
