// Unicode, byte-pair merges, pre-tokenization and added tokens on small cases; hostile texts.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>

#include "base/error.h"
#include "runtime/bpe.h"
#include "runtime/tokenizer_pretokenize.h"
#include "runtime/tokenizer_regex.h"
#include "runtime/unicode.h"
#include "tests/unit/tokenizer_fixture.h"

namespace trireme::test {
namespace {

std::string lossy(std::string_view bytes) {
  std::string text;
  append_lossy_utf8(text, bytes, true);
  return text;
}

TEST(Unicode, ReplacesMaximalSubparts) {
  // Table 3-8 to 3-11 of the Unicode standard, version 15.
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(lossy("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
  EXPECT_EQ(lossy("\xE2\x82"), r);
}

TEST(Unicode, FindsTheFirstInvalidByte) {
  EXPECT_EQ(find_invalid_utf8("a\u00e9\u4e00\U0001F600"), std::nullopt);
  EXPECT_EQ(find_invalid_utf8("ab\x80"), 2u);
  EXPECT_EQ(find_invalid_utf8("\u4e00\xE4\xB8"), 3u);
  EXPECT_EQ(find_invalid_utf8("\xED\xA0\x80"), 0u);
  EXPECT_EQ(find_invalid_utf8("\xF4\x90\x80\x80"), 0u);
}

TEST(Unicode, ComposesLongRunsOfMarks) {
  std::string marks = "e";
  std::string sorted = "\u1EB9";  // e with dot below
  for (int i = 0; i < 100'000; ++i) marks += "\u0308";
  for (int i = 0; i < 100'000; ++i) marks += "\u0323";
  for (int i = 0; i < 99'999; ++i) sorted += "\u0323";
  for (int i = 0; i < 100'000; ++i) sorted += "\u0308";
  EXPECT_EQ(nfc(marks), sorted);
}

TEST(Bpe, ReadsTheByteAlphabet) {
  EXPECT_EQ(bytes_of_token("\u0120the"), " the");
  EXPECT_EQ(bytes_of_token("\u00c3\u00a9"), "\u00e9");
  EXPECT_EQ(bytes_of_token("a b"), std::nullopt);
  EXPECT_EQ(bytes_of_token("\u4e00"), std::nullopt);
}

// Random vocabularies over {a, b, c}: each merge joins two tokens that exist.
TokenizerSpec random_spec(std::mt19937& random, size_t merges) {
  TokenizerSpec spec;
  spec.tokens = {"a", "b", "c"};
  for (size_t tries = 0; tries < 20 * merges && spec.merges.size() < merges; ++tries) {
    const std::string left = spec.tokens[random() % spec.tokens.size()];
    const std::string right = spec.tokens[random() % spec.tokens.size()];
    const std::string both = left + right;
    if (std::find(spec.tokens.begin(), spec.tokens.end(), both) != spec.tokens.end()) continue;
    spec.tokens.push_back(both);
    spec.merges.emplace_back(left, right);
  }
  return spec;
}

// The definition: as long as any pair has a rank, join the leftmost of the best.
std::vector<std::string> merge_plainly(const TokenizerSpec& spec, const std::string& text) {
  std::vector<std::string> parts;
  for (const char c : text) parts.emplace_back(1, c);
  while (true) {
    size_t best = spec.merges.size(), at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto pair = std::make_pair(parts[i], parts[i + 1]);
      const auto found = std::find(spec.merges.begin(), spec.merges.end(), pair);
      const auto rank = static_cast<size_t>(found - spec.merges.begin());
      if (rank < best) best = rank, at = i;
    }
    if (best == spec.merges.size()) return parts;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(at) + 1);
  }
}

TEST(Bpe, MergesAsDefined) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    const TokenizerSpec spec = random_spec(random, 1 + random() % 40);
    const Tokenizer tokenizer(spec);
    std::string text;
    for (size_t n = random() % 200; n > 0; --n) text += "abc"[random() % 3];
    std::vector<std::string> parts;
    for (const int32_t id : tokenizer.encode(text)) parts.push_back(spec.tokens[id]);
    ASSERT_EQ(parts, merge_plainly(spec, text)) << text;
  }
}

TEST(Regex, SpellsOutWhatDiffers) {
  Regex::Scratch scratch;
  const auto matches = [&](const char* pattern, const char* text) {
    return Regex(pattern).find(text, 0, scratch).has_value();
  };
  EXPECT_TRUE(matches("^\\s$", "\u0085"));
  EXPECT_FALSE(matches("\\s", "\u180e"));
  EXPECT_FALSE(matches("\\s|[\\s]", "\u200b"));
  EXPECT_FALSE(matches("[^\\S]", "\ufeff"));
  EXPECT_TRUE(matches("\\p{L}", "\U000105C0"));  // Todhri, Unicode 16
  EXPECT_FALSE(matches("\\P{L}", "\U000105C0"));
  EXPECT_TRUE(matches("[\\p{Nd}]", "\U00010D40"));
  EXPECT_TRUE(matches("\\u4e00", "\u4e00"));
}

ErrorCode code_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "no error";
  return ErrorCode::kInternal;
}

TEST(Regex, RefusesWhatItCannotRead) {
  EXPECT_EQ(code_of([] { Regex("(a"); }), ErrorCode::kDataLoss);
  EXPECT_EQ(code_of([] { Regex("\\"); }), ErrorCode::kDataLoss);
  EXPECT_EQ(code_of([] { Regex("\\p{L"); }), ErrorCode::kDataLoss);
  EXPECT_EQ(code_of([] { Regex("[a[:alpha"); }), ErrorCode::kDataLoss);
  EXPECT_EQ(code_of([] { Regex("[a&&b]"); }), ErrorCode::kUnimplemented);
  EXPECT_EQ(code_of([] { Regex("[a[b]]"); }), ErrorCode::kUnimplemented);
  EXPECT_EQ(code_of([] { Regex("\\p{Klingon}"); }), ErrorCode::kUnimplemented);
  EXPECT_EQ(code_of([] { Regex(std::string(100'000, 'a')); }), ErrorCode::kDataLoss);
}

TEST(Regex, StopsPatternsThatExplode) {
  Regex::Scratch scratch;
  const Regex regex("(a+a+)+$");
  EXPECT_EQ(code_of([&] { regex.find(std::string(200, 'a') + "b", 0, scratch); }),
            ErrorCode::kInvalidArgument);
}

TEST(PreTokenizer, PutsASpaceBeforeEachPiece) {
  using Kind = TokenizerSpec::Split::Kind;
  const PreTokenizer pre({{Kind::kDigitsContiguous, "", false}, {Kind::kPrefixSpace, "", false}});
  PreTokenizer::Scratch scratch;
  const std::vector<std::string_view> expected = {" ab", " 12", " c", " 3"};
  EXPECT_EQ(pre.split("ab12 c3", true, scratch), expected);
}

TEST(Tokenizer, RefusesInvalidUtf8) {
  const Tokenizer tokenizer = fixture_tokenizer("gpt2");
  try {
    tokenizer.encode("abc\xFFxyz");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "text is not UTF-8 at byte 3");
  }
}

TEST(Tokenizer, RefusesIdsOutOfRange) {
  const Tokenizer tokenizer = fixture_tokenizer("gpt2");
  EXPECT_EQ(code_of([&] { tokenizer.decode({-1}); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { tokenizer.decode({tokenizer.vocab_size()}); }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { StreamingDetokenizer(tokenizer).push(1 << 30); }),
            ErrorCode::kInvalidArgument);
}

TEST(Tokenizer, PutsSpecialTokensAround) {
  const Tokenizer tokenizer = fixture_tokenizer("llama3");
  const std::vector<int32_t> empty = tokenizer.encode("");
  ASSERT_EQ(empty.size(), 1u);
  const int32_t begin = empty[0];
  EXPECT_EQ(tokenizer.token_bytes(begin), "<|begin_of_text|>");
  EXPECT_TRUE(tokenizer.encode("", false).empty());
  EXPECT_TRUE(tokenizer.is_special(begin));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("A b\n")), "A b\n");
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("A b\n"), false), "<|begin_of_text|>A b\n");
}

TEST(StreamingDetokenizer, HoldsBackUnfinishedSequences) {
  TokenizerSpec spec;
  for (const char* token : {"\u00f0", "\u0141", "\u013a", "\u0122", "a"})
    spec.tokens.push_back(token);
  const Tokenizer tokenizer(spec);  // the bytes F0 9F 98 80 and "a"
  StreamingDetokenizer stream(tokenizer);
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.push(1), "");
  EXPECT_EQ(stream.push(2), "");
  EXPECT_EQ(stream.push(3), "\U0001F600");
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.push(4), "\uFFFDa");
  EXPECT_EQ(stream.push(0), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

// Each would take minutes if it were quadratic (bench/tokenizer_bench.cc has the times).
TEST(Hostile, LongTextsOfOneKind) {
  for (const char* name : {"smollm2", "llama3", "qwen2"}) {
    const Tokenizer tokenizer = fixture_tokenizer(name);
    for (const char* unit : {"a", " ", "\n", "\u200d", "ab", "1", "<|im_start", "\u0301\u0323",
                             "<a", "\U0001F468\u200d", "'", "\u4e00", " \n"}) {
      std::string text;
      while (text.size() < 1 << 18) text += unit;
      const auto ids = tokenizer.encode(text + "x", false);
      EXPECT_EQ(tokenizer.decode(ids, false),
                tokenizer.spec().normalizers.empty() ? text + "x" : nfc(text + "x"))
          << name << " '" << unit << "'";
    }
  }
}

}  // namespace
}  // namespace trireme::test
