#include "runtime/tokenizer_gguf.h"

#include "base/error.h"
#include "runtime/tokenizer_patterns.h"
#include "runtime/tokenizer_sentencepiece.h"

namespace trireme {
namespace {

using Split = TokenizerSpec::Split;

constexpr int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6;

// What a value of tokenizer.ggml.pre stands for.
struct Pre {
  const char* name;
  const char* pattern;
  bool digits;  // each digit alone first
  bool nfc;
  bool ignore_merges;
  bool add_bos;  // where the file does not say
};
constexpr Pre kPres[] = {
    {"", kGpt2Pattern, false, false, false, false},
    {"default", kGpt2Pattern, false, false, false, false},
    {"gpt-2", kGpt2Pattern, false, false, false, false},
    {"gpt2", kGpt2Pattern, false, false, false, false},
    {"phi-2", kGpt2Pattern, false, false, false, false},
    {"mpt", kGpt2Pattern, false, false, false, false},
    {"olmo", kGpt2Pattern, false, true, false, false},
    {"smollm", kGpt2Pattern, true, false, false, false},
    {"starcoder", kGpt2Pattern, true, false, false, false},
    {"refact", kGpt2Pattern, true, false, false, false},
    {"command-r", kGpt2Pattern, true, true, false, true},
    {"llama-bpe", kLlama3Pattern, false, false, true, true},
    {"llama3", kLlama3Pattern, false, false, true, true},
    {"llama-v3", kLlama3Pattern, false, false, true, true},
    {"qwen2", kQwen2Pattern, false, true, false, false},
    {"deepseek-r1-qwen", kQwen2Pattern, false, true, false, false},
    {"tekken", kTekkenPattern, false, false, true, true},
};

const Pre& find_pre(const GgufVocab& vocab) {
  std::string known;
  for (const Pre& pre : kPres) {
    if (vocab.pre == pre.name) return pre;
    if (*pre.name != '\0') known += (known.empty() ? "" : ", ") + std::string(pre.name);
  }
  fail(ErrorCode::kUnimplemented, "{}: tokenizer.ggml.pre '{}' is not supported; known: {}",
       vocab.source, vocab.pre, known);
}

// The id that is put around every text, if `wanted`.
std::vector<int32_t> around(const GgufVocab& vocab, bool wanted, std::optional<int64_t> id,
                            const char* name) {
  if (!wanted) return {};
  if (!id || *id < 0 || static_cast<uint64_t>(*id) >= vocab.tokens.size()) {
    fail(ErrorCode::kDataLoss, "{}: tokenizer.ggml.{}_token_id is missing or out of range",
         vocab.source, name);
  }
  return {static_cast<int32_t>(*id)};
}

void read_tokens(GgufVocab& vocab, TokenizerSpec& spec) {
  if (!vocab.token_types.empty() && vocab.token_types.size() != vocab.tokens.size()) {
    fail(ErrorCode::kDataLoss, "{}: {} tokenizer.ggml.tokens but {} tokenizer.ggml.token_type",
         vocab.source, vocab.tokens.size(), vocab.token_types.size());
  }
  spec.tokens = std::move(vocab.tokens);
  for (size_t id = 0; id < vocab.token_types.size(); ++id) {
    switch (vocab.token_types[id]) {
      case kNormal:
      case kUnknown:
      case kByte: break;
      case kControl:
      case kUserDefined:
        spec.added.push_back({.id = static_cast<int32_t>(id),
                              .text = spec.tokens[id],
                              .special = vocab.token_types[id] == kControl});
        break;
      case kUnused: spec.tokens[id].clear(); break;
      default:
        fail(ErrorCode::kDataLoss, "{}: tokenizer.ggml.token_type[{}] is {}", vocab.source, id,
             vocab.token_types[id]);
    }
  }
}

void read_merges(const GgufVocab& vocab, TokenizerSpec& spec) {
  if (vocab.merges.empty()) {
    fail(ErrorCode::kDataLoss, "{}: tokenizer.ggml.merges is missing", vocab.source);
  }
  spec.merges.reserve(vocab.merges.size());
  for (size_t i = 0; i < vocab.merges.size(); ++i) {
    const std::string& merge = vocab.merges[i];
    const size_t space = merge.find(' ');
    if (space == std::string::npos) {
      fail(ErrorCode::kDataLoss, "{}: tokenizer.ggml.merges[{}] is '{}', not two tokens",
           vocab.source, i, merge);
    }
    spec.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
}

// A model of SentencePiece's, in GGUF's words: token_type has the numbers of the piece types, and
// what is not said is as in Llama 2 ("llama") and T5 ("t5").
TokenizerSpec sentencepiece_spec(GgufVocab vocab) {
  const size_t ids = vocab.tokens.size();
  if (vocab.scores.size() != ids || vocab.token_types.size() != ids) {
    fail(ErrorCode::kDataLoss,
         "{}: {} tokenizer.ggml.tokens, {} tokenizer.ggml.scores, {} tokenizer.ggml.token_type",
         vocab.source, ids, vocab.scores.size(), vocab.token_types.size());
  }
  SentencePieces model;
  model.source = vocab.source;
  model.unigram = vocab.model == "t5";
  for (size_t id = 0; id < ids; ++id) {
    const int32_t type = vocab.token_types[id];
    if (type < kNormal || type > kByte) {
      fail(ErrorCode::kDataLoss, "{}: tokenizer.ggml.token_type[{}] is {}", vocab.source, id, type);
    }
    model.byte_fallback = model.byte_fallback || type == kByte;
    model.types.push_back(static_cast<TokenizerSpec::Type>(type - kNormal));
  }
  const auto id_of = [](std::optional<int64_t> id, int32_t otherwise) {
    return id && *id >= 0 && *id <= INT32_MAX ? static_cast<int32_t>(*id) : otherwise;
  };
  model.unknown_id = id_of(vocab.unknown_id, model.unigram ? 2 : 0);
  model.bos_id = id_of(vocab.bos_id, -1);
  model.eos_id = id_of(vocab.eos_id, -1);
  model.pieces = std::move(vocab.tokens);
  model.scores = std::move(vocab.scores);
  model.charsmap = std::move(vocab.charsmap);
  model.dummy_prefix = vocab.add_space_prefix.value_or(true);
  model.remove_extra_whitespaces = vocab.remove_extra_whitespaces.value_or(model.unigram);
  const bool add_bos = vocab.add_bos.value_or(!model.unigram);
  const bool add_eos = vocab.add_eos.value_or(model.unigram);
  TokenizerSpec spec = tokenizer_spec_of(std::move(model), add_bos, add_eos);
  spec.chat_template = std::move(vocab.chat_template);
  return spec;
}

}  // namespace

TokenizerSpec tokenizer_spec_from_gguf(GgufVocab vocab) {
  if (vocab.model == "llama" || vocab.model == "t5") return sentencepiece_spec(std::move(vocab));
  if (vocab.model != "gpt2") {
    fail(ErrorCode::kUnimplemented,
         "{}: tokenizer.ggml.model '{}' is not supported; known: gpt2, llama, t5", vocab.source,
         vocab.model);
  }
  const Pre& pre = find_pre(vocab);
  TokenizerSpec spec;
  spec.source = vocab.source;
  spec.model = TokenizerSpec::Model::kByteBpe;
  spec.prefix_ids = around(vocab, vocab.add_bos.value_or(pre.add_bos), vocab.bos_id, "bos");
  spec.suffix_ids = around(vocab, vocab.add_eos.value_or(false), vocab.eos_id, "eos");
  read_tokens(vocab, spec);
  read_merges(vocab, spec);
  if (pre.nfc) spec.normalizers.push_back({TokenizerSpec::Normalize::Kind::kNfc, "", ""});
  spec.ignore_merges = pre.ignore_merges;
  if (pre.digits) spec.splits.push_back({Split::Kind::kDigitsIndividual, "", false});
  spec.splits.push_back({Split::Kind::kRegexIsolated, pre.pattern, false});
  spec.chat_template = std::move(vocab.chat_template);
  return spec;
}

}  // namespace trireme
