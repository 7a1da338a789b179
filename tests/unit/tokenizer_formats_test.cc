// GGUF's "llama" and "t5", SentencePiece's model files, rank files, tekken.json: what equals what,
// what is refused, and hostile files and texts.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>

#include "base/error.h"
#include "runtime/base64.h"
#include "runtime/charsmap.h"
#include "runtime/tokenizer_folder.h"
#include "runtime/tokenizer_gguf.h"
#include "runtime/tokenizer_normalize.h"
#include "runtime/tokenizer_sentencepiece.h"
#include "tests/unit/tokenizer_fixture.h"

namespace trireme::test {
namespace {

// The metadata that a converter writes for a SentencePiece model.
GgufVocab gguf_of(const std::string& name) {
  const SentencePieces model = read_sentencepiece(read_gz(name + ".model"), name);
  GgufVocab vocab;
  vocab.source = "model.gguf";
  vocab.model = model.unigram ? "t5" : "llama";
  vocab.tokens = model.pieces;
  vocab.scores = model.scores;
  for (const auto type : model.types) vocab.token_types.push_back(static_cast<int32_t>(type) + 1);
  vocab.charsmap = model.charsmap;
  vocab.add_space_prefix = model.dummy_prefix;
  vocab.remove_extra_whitespaces = model.remove_extra_whitespaces;
  vocab.unknown_id = model.unknown_id;
  vocab.bos_id = model.bos_id;
  vocab.eos_id = model.eos_id;
  return vocab;
}

TEST(GgufPieces, EqualTheModelFile) {
  for (const char* name : {"spbpe", "spuser", "spuni"}) {
    const Tokenizer from_model = fixture_tokenizer(name);
    const Tokenizer from_gguf(tokenizer_spec_from_gguf(gguf_of(name)));
    const std::vector<std::string> texts = corpus();
    for (size_t i = 0; i < texts.size(); i += 5) {
      ASSERT_EQ(from_gguf.encode(texts[i], false), from_model.encode(texts[i])) << texts[i];
    }
  }
}

TEST(GgufPieces, PutBosBeforeAndEosAfter) {
  const TokenizerSpec llama = tokenizer_spec_from_gguf(gguf_of("spbpe"));
  EXPECT_EQ(llama.prefix_ids, std::vector<int32_t>{1});
  EXPECT_TRUE(llama.suffix_ids.empty());
  const TokenizerSpec t5 = tokenizer_spec_from_gguf(gguf_of("spuni"));
  EXPECT_TRUE(t5.prefix_ids.empty());
  EXPECT_EQ(t5.suffix_ids, std::vector<int32_t>{2});
}

TEST(GgufPieces, RefuseWhatDoesNotFit) {
  const GgufVocab good = gguf_of("spbpe");
  const auto refused = [&](const std::function<void(GgufVocab&)>& spoil, const std::string& part) {
    GgufVocab vocab = good;
    spoil(vocab);
    expect_error([&] { Tokenizer tokenizer(tokenizer_spec_from_gguf(vocab)); },
                 ErrorCode::kDataLoss, part);
  };
  refused([](GgufVocab& v) { v.scores.pop_back(); }, "tokenizer.ggml.scores");
  refused([](GgufVocab& v) { v.token_types.clear(); }, "0 tokenizer.ggml.token_type");
  refused([](GgufVocab& v) { v.token_types[7] = 0; }, "token_type[7] is 0");
  refused([](GgufVocab& v) { v.scores[9] = NAN; }, "the score of piece 9");
  refused([](GgufVocab& v) { v.bos_id.reset(); }, "a BOS is to be added");
  refused([](GgufVocab& v) { v.charsmap = "abc"; }, "the precompiled charsmap of 3 bytes");
}

TEST(PieceFiles, AreFoundInAFolder) {
  const TemporaryFile file(read_gz("spbpe.model"), "tokenizer.model");
  const Tokenizer tokenizer(read_tokenizer(file.folder().string()));
  EXPECT_EQ(tokenizer.encode("a").front(), 1);  // BOS, as nothing says otherwise
  std::ofstream(file.folder() / "tokenizer_config.json")
      << R"({"add_bos_token": false, "add_eos_token": true, "chat_template": "t"})";
  const Tokenizer other(read_tokenizer(file.folder().string()));
  EXPECT_EQ(other.encode("a").back(), 2);
  EXPECT_NE(other.encode("a").front(), 1);
  EXPECT_EQ(other.spec().chat_template, "t");
  std::ofstream(file.folder() / "tokenizer.json") << "{}";  // comes before it
  expect_error([&] { read_tokenizer(file.folder().string()); }, ErrorCode::kDataLoss,
               "model is missing");
}

TEST(PieceFiles, RefuseWhatIsNone) {
  const auto refused = [](const std::string& bytes, ErrorCode code, const std::string& part) {
    expect_error([&] { read_sentencepiece(bytes, "tokenizer.model"); }, code, part);
  };
  refused("hello", ErrorCode::kDataLoss, "tokenizer.model: not a SentencePiece model");
  refused("", ErrorCode::kDataLoss, "not a SentencePiece model");
  refused(std::string("\x0A\x02\x18\x09", 4), ErrorCode::kDataLoss, "piece 0 is of type 9");
  refused(std::string("\x0A\x03\x0A\x01\x61\x12\x02\x18\x03", 9), ErrorCode::kUnimplemented,
          "model_type WORD is not supported; known: UNIGRAM, BPE");
  refused(std::string("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11), ErrorCode::kDataLoss,
          "not a SentencePiece model");
}

// Whatever is changed, cut off or repeated, the result is an error or a tokenizer.
void mutate(const std::string& whole, int rounds, const std::function<void(const std::string&)>& use) {
  std::mt19937 random(5);
  size_t refused = 0;
  for (int round = 0; round < rounds; ++round) {
    std::string bytes = whole;
    for (int change = 1 + static_cast<int>(random() % 4); change > 0; --change) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0: bytes[at] = static_cast<char>(random()); break;
        case 1: bytes.erase(at, 1 + random() % 9); break;
        case 2: bytes.resize(at + 1); break;
        default: bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 20));
      }
    }
    try {
      use(bytes);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, static_cast<size_t>(rounds) / 10);
}

TEST(PieceFiles, SurviveMutations) {
  for (const char* name : {"spbpe", "spuni"}) {
    mutate(read_gz(std::string(name) + ".model"), 60, [](const std::string& bytes) {
      const Tokenizer tokenizer(tokenizer_spec_of(read_sentencepiece(bytes, "m"), false, false));
      tokenizer.decode(tokenizer.encode("Hello \u4e00 wor<s>ld", false));
    });
  }
}

TEST(Tekken, SurvivesMutations) {
  mutate(read_gz("tekken.json").substr(0, 30'000), 60, [](const std::string& bytes) {
    read_tekken(TemporaryFile(bytes, "tekken.json").path());
  });
}

TEST(Tekken, NamesWhatIsWrong) {
  const auto refused = [](const std::string& text, const std::string& part) {
    expect_error([&] { read_tekken(TemporaryFile(text, "tekken.json").path()); },
                 ErrorCode::kDataLoss, part);
  };
  const std::string config =
      R"({"config": {"pattern": ".", "default_vocab_size": 4, "default_num_special_tokens": 3}, )";
  refused("{}", "config is missing");
  refused(config + R"("vocab": []})", "config.default_vocab_size is 4, of which 3 are special");
  refused(config + R"("vocab": [{"rank": 0, "token_bytes": "?"}]})", "token_bytes is not base64");
  refused(config + R"("vocab": [{"rank": 1, "token_bytes": "YQ=="}]})", "vocab[0].rank is not 0");
}

std::string rank_lines(size_t count) {
  std::string text;
  for (size_t rank = 0; rank < count; ++rank) {
    // The 256 bytes, then pairs and triples of bytes.
    std::string bytes(1, static_cast<char>(rank));
    if (rank >= 256) bytes += static_cast<char>(rank >> 8);
    if (rank >= 256 + 65280) bytes += static_cast<char>('a' + (rank >> 16));
    static constexpr char kDigits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0;
    for (size_t i = 0; i < 3; ++i) {
      bits = bits << 8 | (i < bytes.size() ? static_cast<uint8_t>(bytes[i]) : 0);
    }
    for (size_t i = 0; i < 4; ++i) {
      text += i <= bytes.size() ? kDigits[bits >> (18 - 6 * i) & 63] : '=';
    }
    text += " " + std::to_string(rank) + "\n";
  }
  return text;
}

TEST(Ranks, OfLlama3) {
  const TemporaryFile file(rank_lines(128'000), "tokenizer.model");
  const Tokenizer tokenizer(read_tokenizer(file.folder().string()));
  EXPECT_EQ(tokenizer.vocab_size(), 128'256);
  // "ab" is the pair of rank 'b' << 8 | 'a'.
  EXPECT_EQ(tokenizer.encode("ab<|eot_id|>"),
            (std::vector<int32_t>{128'000, 'b' << 8 | 'a', 128'009}));
  EXPECT_EQ(tokenizer.decode({'b' << 8 | 'a', 128'009}, false), "ab<|eot_id|>");
}

TEST(Ranks, RefuseWhatIsNone) {
  const auto refused = [](const std::string& text, ErrorCode code, const std::string& part) {
    expect_error([&] { read_ranks(text, "f"); }, code, part);
  };
  refused(rank_lines(300), ErrorCode::kUnimplemented, "f: 300 ranks, and nothing says how");
  refused("YQ== 0\nYQ=!= 1\n", ErrorCode::kDataLoss, "f: line 2 is not a token in base64");
  refused("YQ== 0\nYg== 2\n", ErrorCode::kDataLoss, "f: line 2 has rank 2, not 1");
  refused("YQ== 0\n 1\n", ErrorCode::kDataLoss, "f: line 2 is not");
  refused("YQ== -1\n", ErrorCode::kDataLoss, "f: line 1 is not");
}

TEST(Base64, Decodes) {
  EXPECT_EQ(decode_base64("YWI="), "ab");
  EXPECT_EQ(decode_base64("YWI"), "ab");
  EXPECT_EQ(decode_base64(""), "");
  EXPECT_EQ(decode_base64("Y"), std::nullopt);
  EXPECT_EQ(decode_base64("Y W="), std::nullopt);
}

// A trie in which 'a' leads back to where it came from, with a rule at every step.
std::string cyclic_charsmap(const std::string& content) {
  std::vector<uint32_t> units(512, 0);
  const auto offset = [](uint32_t value) { return value << 10; };
  const uint32_t base = 256;
  units[0] = offset(base);
  const uint32_t at = base ^ 'a';
  units[at] = 'a' | 1u << 8 | offset(at ^ base);  // back to the base, with a value there
  units[base] = 0x80000000u;                       // the value: content 0
  std::string blob(4, '\0');
  const auto bytes = static_cast<uint32_t>(units.size() * 4);
  std::memcpy(blob.data(), &bytes, 4);
  blob.append(reinterpret_cast<const char*>(units.data()), bytes);
  return blob + content;
}

TEST(Charsmaps, WithACycleEnd) {
  const Charsmap map(cyclic_charsmap("b"), "f");
  const auto rule = map.longest(std::string(1 << 20, 'a'));
  ASSERT_TRUE(rule);
  EXPECT_EQ(rule->length, 256u);
  EXPECT_EQ(rule->content, "b");
  EXPECT_EQ(map.shortest("aaa")->length, 1u);
}

TEST(Charsmaps, AndReplacementsCannotExplode) {
  using Kind = TokenizerSpec::Normalize::Kind;
  Regex::Scratch scratch;
  const std::string text(1000, 'a');
  const Normalizer mapped(
      {{Kind::kPrecompiled, "", cyclic_charsmap(std::string(1 << 16, 'b'))}}, nullptr, "f");
  expect_error([&] { mapped.run(text, scratch); }, ErrorCode::kInvalidArgument, "normalized, the");
  std::vector<TokenizerSpec::Normalize> steps(
      20, TokenizerSpec::Normalize{Kind::kReplaceText, "a", "aa"});
  const Normalizer doubled(steps, nullptr, "f");
  expect_error([&] { doubled.run(text, scratch); }, ErrorCode::kInvalidArgument, "normalized, the");
}

// Each would take minutes if it were quadratic (bench/tokenizer_bench has the times).
TEST(HostileTexts, OfOneKind) {
  for (const char* name : {"llama2", "gemma", "t5", "albert", "jamba", "spbpe", "spuser", "spuni",
                           "spunib", "tekken"}) {
    const Tokenizer tokenizer = fixture_tokenizer(name);
    for (const char* unit : {"a", " ", "\n", "\u200d", "ab", "1", "<s", "\u0301\u0323", "\u2581",
                             "\U0001F468\u200d", "\u4e00", "\uFDFA", "<0x41>"}) {
      std::string text;
      while (text.size() < 1 << 18) text += unit;
      const auto ids = tokenizer.encode(text + "x", false);
      // Whatever normalizers make of it, it is whole: its last letter is the last but for spaces.
      const std::string back = tokenizer.decode(ids, false);
      const size_t last = back.find_last_not_of(' ');
      EXPECT_TRUE(last != std::string::npos && back[last] == 'x') << name << ", of " << unit;
    }
  }
}

// Equal scores make one rank of many merges: then the leftmost comes first.
TEST(Bpe, MergesEqualRanksFromTheLeft) {
  TokenizerSpec spec;
  spec.model = TokenizerSpec::Model::kCharacterBpe;
  spec.decode.bytes = TokenizerSpec::Decode::Bytes::kNone;
  spec.tokens = {"a", "b", "ab", "ba", "aba", "bab"};
  spec.merge_ranks = {-1, -1, 0, 0, 0, 0};
  const Tokenizer tokenizer(spec);
  EXPECT_EQ(tokenizer.encode("abab"), (std::vector<int32_t>{4, 1}));
  std::string text;
  while (text.size() < 4000) text += "ab";
  const auto ids = tokenizer.encode(text);
  // "aba" "bab" "aba" …: every token takes the three characters after the one before it.
  for (size_t i = 0; i + 1 < ids.size(); ++i) EXPECT_EQ(ids[i], i % 2 == 0 ? 4 : 5) << i;
}

// Runs of a user-defined token, equal but for rounding, and a text whose sum exceeds what a float
// holds exactly. Expected ids: SentencePiece 0.2.3 with these pieces.
TEST(Unigram, RoundsAsSentencePieceDoes) {
  using Type = TokenizerSpec::Type;
  SentencePieces model;
  model.unigram = true;
  model.dummy_prefix = model.remove_extra_whitespaces = false;
  model.bos_id = model.eos_id = -1;
  const auto add = [&](const std::string& piece, float score, Type type) {
    model.pieces.push_back(piece);
    model.scores.push_back(score);
    model.types.push_back(type);
  };
  add("<unk>", 0, Type::kUnknown);
  for (const int run : {1, 2, 3, 4, 6, 8, 12, 16}) {
    std::string piece;
    for (int i = 0; i < run; ++i) piece += "\u2581";
    add(piece, 0, Type::kUserDefined);
  }
  add("a", -3.3f, Type::kNormal);
  add("b", -3.3f - 1.7f, Type::kNormal);
  add("c", -3.3f - 2 * 1.7f, Type::kNormal);
  add("\u2581a", -4.1f, Type::kNormal);
  add("ab", -8.299999f, Type::kNormal);
  const Tokenizer tokenizer(tokenizer_spec_of(std::move(model), false, false));
  const auto run = [&](size_t spaces) { return tokenizer.encode(std::string(spaces, ' ')); };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(run(22), (Ids{5, 8}));
  EXPECT_EQ(run(23), (Ids{3, 7, 6}));
  EXPECT_EQ(run(25), (Ids{1, 6, 8}));
  EXPECT_EQ(run(33), (Ids{1, 8, 8}));
  EXPECT_EQ(run(41), (Ids{1, 6, 8, 8}));
  EXPECT_EQ(run(53), (Ids{1, 4, 8, 8, 8}));
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "abcabcabcabcabc       ";
  const auto ids = tokenizer.encode(text);
  uint32_t hash = 0;
  for (const int32_t id : ids) hash = hash * 31 + static_cast<uint32_t>(id);
  EXPECT_EQ(ids.size(), 36002u);
  EXPECT_EQ(hash, 2715314461u);
}

}  // namespace
}  // namespace trireme::test
