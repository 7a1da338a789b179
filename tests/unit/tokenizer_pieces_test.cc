// SentencePiece-style tokenizers and tekken: ids and texts equal those of Hugging Face's tokenizers
// (tokenizer.json), SentencePiece itself (model files) and tiktoken (tekken).
#include <gtest/gtest.h>

#include "base/error.h"
#include "runtime/unicode.h"
#include "tests/unit/tokenizer_fixture.h"

namespace trireme::test {
namespace {

constexpr size_t kEvery = 4;  // make_tokenizer_pieces.py's EVERY
constexpr int32_t kFew = 300;

class Pieces : public testing::TestWithParam<const char*> {
 protected:
  const TokenizerSpec spec_ = fixture_spec(GetParam());
  const Tokenizer tokenizer_{spec_};
  // SentencePiece takes "<s>" in a text for text; here it is the token.
  bool judged_by_pieces() const { return has_fixture(std::string(GetParam()) + ".model"); }
  bool spells_special(const std::string& text) const {
    for (const AddedToken& token : spec_.added) {
      if (text.find(token.text) != std::string::npos) return true;
    }
    return false;
  }
};

TEST_P(Pieces, IdsOfTheCorpus) {
  const std::vector<std::string> texts = corpus();
  const std::vector<Expected> expected = expected_ids(GetParam());
  ASSERT_EQ(expected.size(), (texts.size() + kEvery - 1) / kEvery);
  size_t wrong = 0, compared = 0;
  for (size_t i = 0; i < expected.size() && wrong < 5; ++i) {
    const std::string& text = texts[i * kEvery];
    if (judged_by_pieces() && spells_special(text)) continue;
    ++compared;
    const std::vector<int32_t> ids = tokenizer_.encode(text);
    const bool equal = ids.size() == expected[i].count && crc(ids) == expected[i].crc;
    wrong += !equal;
    EXPECT_TRUE(equal) << "record " << i * kEvery << " '" << text << "' gives "
                       << testing::PrintToString(ids) << ", expected "
                       << testing::PrintToString(expected[i].ids);
  }
  EXPECT_GT(wrong + compared, 5u);
  if (wrong == 0) {
    EXPECT_GT(compared, 1500u);
  }
}

class PiecesText : public Pieces {};

TEST_P(PiecesText, OfRandomIds) {
  RandomIds random;
  for (const std::string& line : lines(read_gz(std::string(GetParam()) + ".text"))) {
    const std::vector<int32_t> ids = random.next(tokenizer_.vocab_size(), kFew);
    std::istringstream in(line);
    for (const bool skip_special : {true, false}) {
      uint32_t expected = 0;
      if (!(in >> expected)) break;
      const std::string text = tokenizer_.decode(ids, skip_special);
      ASSERT_EQ(crc(text), expected) << testing::PrintToString(ids) << " gives '" << text << "'";
      StreamingDetokenizer stream(tokenizer_, skip_special);
      std::string pieces;
      for (const int32_t id : ids) {
        const std::string piece = stream.push(id);
        ASSERT_FALSE(find_invalid_utf8(piece));
        pieces += piece;
      }
      ASSERT_EQ(pieces + stream.finish(), text);
    }
  }
}

std::string name_of(const testing::TestParamInfo<const char*>& info) { return info.param; }

INSTANTIATE_TEST_SUITE_P(Files, Pieces,
                         testing::Values("llama2", "llama2new", "gemma", "t5", "albert", "jamba",
                                         "spbpe", "spuser", "spuni", "spunib", "tekken"),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Files, PiecesText,
                         testing::Values("llama2", "llama2new", "gemma", "t5", "albert", "jamba",
                                         "spbpe", "spuser", "spuni", "spunib"),
                         name_of);

}  // namespace
}  // namespace trireme::test
