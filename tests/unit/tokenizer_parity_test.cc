// Ids and texts equal those of Hugging Face's tokenizers.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "runtime/unicode.h"
#include "tests/unit/tokenizer_fixture.h"

namespace trireme::test {
namespace {

class Parity : public testing::TestWithParam<const char*> {
 protected:
  const Tokenizer tokenizer_ = fixture_tokenizer(GetParam());
};

TEST_P(Parity, IdsOfTheCorpus) {
  const std::vector<std::string> texts = corpus();
  const std::vector<Expected> expected = expected_ids(GetParam());
  ASSERT_EQ(texts.size(), expected.size());
  size_t bytes = 0, wrong = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    bytes += texts[i].size();
    const std::vector<int32_t> ids = tokenizer_.encode(texts[i]);
    if (!expected[i].ids.empty()) {
      EXPECT_EQ(ids, expected[i].ids) << "record " << i;
    }
    const bool equal = ids.size() == expected[i].count && crc(ids) == expected[i].crc;
    EXPECT_TRUE(equal) << "record " << i << " '" << texts[i] << "' gives "
                       << testing::PrintToString(ids);
    if (!equal && ++wrong == 5) FAIL() << "and perhaps more";
  }
  EXPECT_GE(bytes, 1'000'000u);
}

TEST_P(Parity, TextOfRandomIds) {
  RandomIds random;
  for (const std::string& line : lines(read_gz(std::string(GetParam()) + ".text"))) {
    const std::vector<int32_t> ids = random.next(tokenizer_.vocab_size(), 252);
    std::istringstream in(line);
    for (const bool skip_special : {true, false}) {
      uint32_t expected = 0;
      in >> expected;
      const std::string text = tokenizer_.decode(ids, skip_special);
      ASSERT_EQ(crc(text), expected) << testing::PrintToString(ids) << " gives " << text;
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

TEST_P(Parity, FromManyThreads) {
  const std::vector<std::string> texts = corpus();
  const std::vector<Expected> expected = expected_ids(GetParam());
  std::vector<std::thread> threads;
  std::vector<size_t> wrong(4);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < texts.size(); i += 3) {
        wrong[t] += crc(tokenizer_.encode(texts[i])) != expected[i].crc;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<size_t>(wrong.size(), 0));
}

INSTANTIATE_TEST_SUITE_P(Files, Parity, testing::Values("smollm2", "llama3", "qwen2", "gpt2"),
                         [](const auto& info) { return std::string(info.param); });

// What the decode test is worth: its streams do hold broken UTF-8.
TEST(Streams, HoldBrokenUtf8) {
  const Tokenizer tokenizer = fixture_tokenizer("smollm2");
  RandomIds random;
  size_t replaced = 0;
  for (int i = 0; i < 100; ++i) {
    const std::string text = tokenizer.decode(random.next(tokenizer.vocab_size(), 252));
    replaced += text.find("\xEF\xBF\xBD") != std::string::npos;
  }
  EXPECT_GT(replaced, 50u);
}

TEST(PreTokenizers, SplitAsHuggingFaceDoes) {
  const std::vector<std::string> texts = corpus();
  nlohmann::json file = nlohmann::json::parse(read_gz("qwen2.json"));
  for (const std::string& line : lines(read_gz("variants"))) {
    const nlohmann::json variant = nlohmann::json::parse(line);
    file["pre_tokenizer"] = variant["pre_tokenizer"];
    const Tokenizer tokenizer(spec_of_json(file.dump()));
    size_t wrong = 0;
    for (size_t i = 0; i < texts.size() && wrong < 3; i += 8) {
      const bool equal = crc(tokenizer.encode(texts[i])) == variant["crc"][i / 8].get<uint32_t>();
      wrong += !equal;
      EXPECT_TRUE(equal) << "record " << i << " '" << texts[i] << "' with "
                         << variant["pre_tokenizer"].dump();
    }
  }
}

}  // namespace
}  // namespace trireme::test
