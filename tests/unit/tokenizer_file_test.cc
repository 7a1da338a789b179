// tokenizer.json and GGUF metadata: what is read, and what is refused with which message.
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "runtime/tokenizer_gguf.h"
#include "tests/unit/tokenizer_fixture.h"

namespace trireme::test {
namespace {

using nlohmann::json;

json small_file() {
  return json::parse(R"({
    "added_tokens": [{"id": 4, "content": "<s>", "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": null,
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "abab": 3},
              "merges": ["a b", "ab ab"]}
  })");
}

void expect_refused(const std::string& text, ErrorCode code, const std::string& part) {
  expect_error([&] { Tokenizer tokenizer(spec_of_json(text)); }, code, part);
}

// `patch` is a JSON merge patch (RFC 7396): null removes.
void expect_refused_with(const char* patch, ErrorCode code, const std::string& part) {
  json file = small_file();
  file.merge_patch(json::parse(patch));
  expect_refused(file.dump(), code, part);
}

TEST(TokenizerJson, ReadsTheSmallFile) {
  const Tokenizer tokenizer(spec_of_json(small_file().dump()));
  EXPECT_EQ(tokenizer.vocab_size(), 5);
  EXPECT_EQ(tokenizer.encode("ababa<s>b"), (std::vector<int32_t>{3, 0, 4, 1}));
  EXPECT_EQ(tokenizer.decode({3, 4, 1}), "ababb");
}

TEST(TokenizerJson, NamesTheFile) {
  expect_error([] { read_tokenizer_json("/no/such/tokenizer.json"); }, ErrorCode::kNotFound,
               "/no/such/tokenizer.json");
  expect_refused("{\"model\": 1", ErrorCode::kDataLoss, "tokenizer.json: not valid JSON");
}

TEST(TokenizerJson, RefusesMalformedFiles) {
  constexpr auto kLoss = ErrorCode::kDataLoss;
  expect_refused("[]", kLoss, "not a JSON object");
  expect_refused("{}", kLoss, "model is missing");
  expect_refused(std::string(1 << 20, '['), kLoss, "nested deeper than 64 levels");
  std::string deep = "{\"model\":";
  for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
  expect_refused(deep, kLoss, "nested deeper than 64 levels");
  expect_refused("{\"model\": {\"vocab\": {\"\xFF\": 0}}}", kLoss, "not valid JSON");
  expect_refused_with(R"({"model": []})", kLoss, "model is not an object");
  expect_refused_with(R"({"model": {"merges": null}})", kLoss, "model.merges is missing");
  expect_refused_with(R"({"model": {"merges": {}}})", kLoss, "model.merges is not a list");
  expect_refused_with(R"({"model": {"merges": ["ab"]}})", kLoss, "model.merges[0] is 'ab'");
  expect_refused_with(R"({"model": {"merges": ["a b", "a b b"]}})", kLoss, "model.merges[1]");
  expect_refused_with(R"({"model": {"merges": [["a"]]}})", kLoss, "model.merges[0] is not a pair");
  expect_refused_with(R"({"model": {"merges": [["a", 1]]}})", kLoss, "model.merges[0][1]");
  expect_refused_with(R"({"model": {"merges": [7]}})", kLoss, "model.merges[0] is not a string");
  expect_refused_with(R"({"model": {"merges": ["a b", "a x"]}})", kLoss, "merges[1] names 'x'");
  expect_refused_with(R"({"model": {"merges": ["b a"]}})", kLoss, "merges[0] names 'ba'");
  expect_refused_with(R"({"model": {"vocab": null}})", kLoss, "model.vocab is missing");
  expect_refused_with(R"({"model": {"vocab": {"b": "1"}}})", kLoss, "model.vocab['b'] is not");
  expect_refused_with(R"({"model": {"vocab": {"b": -1}}})", kLoss, "model.vocab['b'] is not");
  expect_refused_with(R"({"model": {"vocab": {"b": 0}}})", kLoss, "the same id 0");
  expect_refused_with(R"({"model": {"vocab": {"b": 1e3}}})", kLoss, "model.vocab['b'] is not");
  expect_refused_with(R"({"model": {"vocab": {"b": 2000000000}}})", kLoss, "an id of 2000000000");
  expect_refused_with(R"({"model": {"vocab": {"b": 99999999999999999999}}})", kLoss, "is not");
  expect_refused_with(R"({"added_tokens": {}})", kLoss, "added_tokens is not a list");
  expect_refused_with(R"({"added_tokens": [{"id": 4}]})", kLoss, "added_tokens[0].content");
  expect_refused_with(R"({"added_tokens": [{"id": 2147483647, "content": "x"}]})", kLoss,
                      "added_tokens[0] has id 2147483647");
  expect_refused_with(R"({"added_tokens": [{"id": 1, "content": "x"}]})", kLoss, "used twice");
  expect_refused_with(R"({"added_tokens": [{"id": 4, "content": "x", "lstrip": 1}]})", kLoss,
                      "added_tokens[0].lstrip is not true or false");
  expect_refused_with(R"({"pre_tokenizer": {"type": null}})", kLoss, "pre_tokenizer.type");
  expect_refused_with(R"({"post_processor": {"type": "TemplateProcessing"}})", kLoss,
                      "post_processor.single is missing");
  expect_refused_with(R"({"post_processor": {"type": "TemplateProcessing", "single": []}})", kLoss,
                      "post_processor.single has no Sequence");
  expect_refused_with(R"({"post_processor": {"type": "TemplateProcessing", "single":
      [{"SpecialToken": {"id": "<x>"}}, {"Sequence": {"id": "A"}}], "special_tokens": {}}})",
                      kLoss, "post_processor.special_tokens.<x> is missing");
  expect_refused_with(R"({"post_processor": {"type": "TemplateProcessing", "single":
      [{"SpecialToken": {"id": "<x>"}}, {"Sequence": {"id": "A"}}],
      "special_tokens": {"<x>": {"ids": [5]}}}})",
                      kLoss, "has id 5, but the vocabulary has 5 ids");
}

TEST(TokenizerJson, NamesWhatItDoesNotSupport) {
  constexpr auto kNot = ErrorCode::kUnimplemented;
  expect_refused_with(R"({"model": {"type": "WordPiece"}})", kNot,
                      "model of type WordPiece is not supported; known: BPE, Unigram");
  expect_refused_with(R"({"model": {"dropout": 0.1}})", kNot, "dropout");
  expect_refused_with(R"({"model": {"end_of_word_suffix": "</w>"}})", kNot, "end_of_word_suffix");
  expect_refused_with(R"({"normalizer": {"type": "Nmt"}})", kNot,
                      "normalizer of type Nmt is not supported; known: Lowercase, NFC");
  expect_refused_with(R"({"pre_tokenizer": {"type": "Punctuation"}})", kNot,
                      "Punctuation is not supported; known: ByteLevel");
  expect_refused_with(R"({"pre_tokenizer": null})", kNot, "decoder of type ByteLevel without");
  expect_refused_with(R"({"decoder": {"type": "Fuse"}})", kNot, "decoder without ByteLevel");
  expect_refused_with(R"({"decoder": null})", kNot, "decoder null is not supported; known: Byte");
  expect_refused_with(R"({"post_processor": {"type": "BertProcessing"}})", kNot,
                      "BertProcessing is not supported; known: ByteLevel");
  expect_refused_with(R"({"decoder": {"type": "WordPiece"}})", kNot,
                      "decoder of type WordPiece is not supported; known: ByteFallback");
  expect_refused_with(R"({"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"},
                          {"type": "ByteFallback"}]}})",
                      kNot, "decoder.decoders[1] of type ByteFallback after Fuse");
  expect_refused_with(R"({"pre_tokenizer": {"type": "Metaspace", "replacement": "_",
                          "prepend_scheme": "last", "add_prefix_space": null}})",
                      kNot, "prepend_scheme last is not supported; known: always, first, never");
}

// Whatever is cut off, the result is an error or a tokenizer, never a crash.
TEST(TokenizerJson, SurvivesEveryTruncation) {
  const std::string whole = small_file().dump();
  for (size_t length = 1; length < whole.size(); ++length) {
    EXPECT_THROW(Tokenizer(spec_of_json(whole.substr(0, length))), Error);
  }
}

// Random bytes changed, dropped and repeated.
TEST(TokenizerJson, SurvivesMutations) {
  const std::string whole = small_file().dump();
  std::mt19937 random(11);
  size_t refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text = whole;
    for (int change = 1 + static_cast<int>(random() % 3); change > 0; --change) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0: text[at] = static_cast<char>(random()); break;
        case 1: text.erase(at, 1 + random() % 8); break;
        default: text.insert(at, text.substr(random() % text.size(), random() % 16));
      }
    }
    try {
      Tokenizer tokenizer(spec_of_json(text));
      tokenizer.decode(tokenizer.encode("ab <s> abab"));
    } catch (const Error& error) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000u);
}

TEST(TokenizerJson, FindsTheChatTemplate) {
  const TemporaryFile file(small_file().dump());
  EXPECT_EQ(read_tokenizer_json(file.path()).chat_template, "");
  const auto config = file.folder() / "tokenizer_config.json";
  std::ofstream(config) << R"({"chat_template": "one"})";
  EXPECT_EQ(read_tokenizer_json(file.path()).chat_template, "one");
  std::ofstream(config) << R"({"chat_template": [{"name": "tool_use", "template": "no"},
                                                {"name": "default", "template": "two"}]})";
  EXPECT_EQ(read_tokenizer_json(file.path()).chat_template, "two");
  std::ofstream(file.folder() / "chat_template.jinja") << "three\n";
  EXPECT_EQ(read_tokenizer_json(file.path()).chat_template, "three\n");
}

// GGUF metadata with the vocabulary of a fixture.
GgufVocab gguf_of(const std::string& name, const std::string& pre) {
  const TokenizerSpec spec = spec_of_json(read_gz(name + ".json"));
  GgufVocab vocab;
  vocab.source = "model.gguf";
  vocab.model = "gpt2";
  vocab.pre = pre;
  vocab.tokens = spec.tokens;
  vocab.token_types.assign(spec.tokens.size(), 1);
  for (const AddedToken& token : spec.added) {
    vocab.tokens[token.id] = token.text;
    vocab.token_types[token.id] = token.special ? 3 : 4;
  }
  for (const auto& [left, right] : spec.merges)
    vocab.merges.push_back(fmt::format("{} {}", left, right));
  return vocab;
}

// What a merge makes is one of its own parts only where the other is empty: no token is.
TEST(TokenizerJson, MergesThatNameThemselves) {
  constexpr auto kLoss = ErrorCode::kDataLoss;
  for (const char* merges : {R"([["", "a"]])", R"([["a", ""]])", R"([["", ""]])", R"(["ab "])"}) {
    json file = small_file();
    file["model"]["merges"] = json::parse(merges);
    expect_refused(file.dump(), kLoss, "merges[0] names ''");
    file["model"]["vocab"][""] = 5;
    expect_refused(file.dump(), kLoss, "merges[0] names ''");
  }
  json file = small_file();
  file["model"]["merges"] = json::parse(R"(["ab ab", "a b", "a b", "ab ab"])");  // each twice
  EXPECT_EQ(Tokenizer(spec_of_json(file.dump())).encode("ababab"), (std::vector<int32_t>{3, 2}));
}

TEST(TokenizerGguf, EqualsTokenizerJson) {
  const Tokenizer from_json = fixture_tokenizer("smollm2");
  const Tokenizer from_gguf(tokenizer_spec_from_gguf(gguf_of("smollm2", "smollm")));
  EXPECT_EQ(from_gguf.vocab_size(), 49152);
  for (const std::string& text : corpus()) {
    ASSERT_EQ(from_gguf.encode(text), from_json.encode(text)) << text;
  }
}

// Texts without the added tokens whose flags GGUF cannot hold.
TEST(TokenizerGguf, PreSelectsThePattern) {
  for (const auto& [name, pre] : {std::pair("llama3", "llama-bpe"), std::pair("qwen2", "qwen2")}) {
    const Tokenizer from_json = fixture_tokenizer(name);
    GgufVocab vocab = gguf_of(name, pre);
    vocab.add_bos = false;
    const Tokenizer from_gguf(tokenizer_spec_from_gguf(vocab));
    size_t compared = 0;
    for (const std::string& text : corpus()) {
      if (text.find('<') != std::string::npos || text.find("word") != std::string::npos) continue;
      ASSERT_EQ(from_gguf.encode(text, false), from_json.encode(text, false)) << text;
      ++compared;
    }
    EXPECT_GT(compared, 3000u);
  }
}

TEST(TokenizerGguf, PutsBosAndEosAround) {
  GgufVocab vocab = gguf_of("llama3", "llama-bpe");
  vocab.bos_id = 7;
  vocab.eos_id = 8;
  EXPECT_EQ(tokenizer_spec_from_gguf(vocab).prefix_ids, std::vector<int32_t>{7});
  EXPECT_TRUE(tokenizer_spec_from_gguf(vocab).suffix_ids.empty());
  vocab.add_bos = false;
  vocab.add_eos = true;
  EXPECT_TRUE(tokenizer_spec_from_gguf(vocab).prefix_ids.empty());
  EXPECT_EQ(tokenizer_spec_from_gguf(vocab).suffix_ids, std::vector<int32_t>{8});
}

TEST(TokenizerGguf, RefusesWhatDoesNotFit) {
  const GgufVocab good = gguf_of("gpt2", "gpt-2");
  const auto refused = [&](const std::function<void(GgufVocab&)>& spoil, ErrorCode code,
                           const std::string& part) {
    GgufVocab vocab = good;
    spoil(vocab);
    expect_error([&] { Tokenizer tokenizer(tokenizer_spec_from_gguf(vocab)); }, code, part);
  };
  constexpr auto kLoss = ErrorCode::kDataLoss;
  constexpr auto kNot = ErrorCode::kUnimplemented;
  refused([](GgufVocab& v) { v.model = std::string("bert"); }, kNot,
          "tokenizer.ggml.model 'bert' is not supported; known: gpt2, llama, t5");
  refused([](GgufVocab& v) { v.pre = std::string("klingon"); }, kNot,
          "'klingon' is not supported; known: ");
  refused([](GgufVocab& v) { v.merges.clear(); }, kLoss, "tokenizer.ggml.merges is missing");
  refused([](GgufVocab& v) { v.merges[3] = std::string("ab"); }, kLoss, "tokenizer.ggml.merges[3]");
  refused([](GgufVocab& v) { v.merges[3] = std::string("a "); }, kLoss, "merges[3] names ''");
  refused([](GgufVocab& v) { v.token_types.pop_back(); }, kLoss, "tokenizer.ggml.token_type");
  refused([](GgufVocab& v) { v.token_types[5] = 99; }, kLoss, "token_type[5] is 99");
  refused([](GgufVocab& v) { v.tokens[9] = v.tokens[8]; }, kLoss, "tokens 8 and 9 are both");
  refused([](GgufVocab& v) { v.tokens[9] = std::string("\xFF"); }, kLoss, "tokens[9] is not UTF-8");
  refused([](GgufVocab& v) { v.add_bos = true; }, kLoss, "tokenizer.ggml.bos_token_id");
  refused([](GgufVocab& v) { v.add_eos = true, v.eos_id = -5; }, kLoss, "eos_token_id");
  refused([](GgufVocab& v) { v.tokens.clear(), v.token_types.clear(), v.merges = {"a b"}; }, kLoss,
          "a vocabulary of 0 tokens");
}

}  // namespace
}  // namespace trireme::test
