#include "runtime/tokenizer_sentencepiece.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "runtime/protobuf_fields.h"

namespace trireme {
namespace {

using Type = TokenizerSpec::Type;

constexpr std::string_view kMark = "\u2581";

void read_piece(std::string_view message, SentencePieces& model) {
  ProtobufFields fields(message);
  std::string piece;
  float score = 0;
  uint64_t type = 1;
  while (const auto field = fields.next()) {
    if (field->number == 1) piece = field->bytes;
    if (field->number == 2) score = field->as_float();
    if (field->number == 3) type = field->value;
  }
  if (fields.broken()) {
    fail(ErrorCode::kDataLoss, "{}: piece {} is broken", model.source, model.pieces.size());
  }
  if (type < 1 || type > 6) {
    fail(ErrorCode::kDataLoss, "{}: piece {} is of type {}", model.source, model.pieces.size(),
         type);
  }
  constexpr Type kTypes[] = {Type::kNormal,      Type::kUnknown, Type::kControl,
                             Type::kUserDefined, Type::kUnused,  Type::kByte};
  model.pieces.push_back(std::move(piece));
  model.scores.push_back(score);
  model.types.push_back(kTypes[type - 1]);
}

void read_trainer(std::string_view message, SentencePieces& model) {
  ProtobufFields fields(message);
  uint64_t type = 1;
  while (const auto field = fields.next()) {
    const auto id = static_cast<int32_t>(field->value);
    switch (field->number) {
      case 3: type = field->value; break;
      case 24: model.whitespace_as_suffix = field->value != 0; break;
      case 35: model.byte_fallback = field->value != 0; break;
      case 40: model.unknown_id = id; break;
      case 41: model.bos_id = id; break;
      case 42: model.eos_id = id; break;
      default: break;
    }
  }
  if (fields.broken()) fail(ErrorCode::kDataLoss, "{}: trainer_spec is broken", model.source);
  if (type != 1 && type != 2) {
    fail(ErrorCode::kUnimplemented, "{}: model_type {} is not supported; known: UNIGRAM, BPE",
         model.source, type == 3 ? "WORD" : type == 4 ? "CHAR" : std::to_string(type));
  }
  model.unigram = type == 1;
}

void read_normalizer(std::string_view message, SentencePieces& model) {
  ProtobufFields fields(message);
  while (const auto field = fields.next()) {
    switch (field->number) {
      case 2: model.charsmap = field->bytes; break;
      case 3: model.dummy_prefix = field->value != 0; break;
      case 4: model.remove_extra_whitespaces = field->value != 0; break;
      case 5: model.escape_whitespaces = field->value != 0; break;
      default: break;
    }
  }
  if (fields.broken()) fail(ErrorCode::kDataLoss, "{}: normalizer_spec is broken", model.source);
}

// The greater the score, the less the rank; equal scores have the same.
std::vector<int32_t> ranks_of(const std::vector<float>& scores) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  std::vector<int32_t> ranks(scores.size());
  int32_t rank = -1;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i == 0 || scores[order[i]] != scores[order[i - 1]]) ++rank;
    ranks[order[i]] = rank;
  }
  return ranks;
}

void check(const SentencePieces& model) {
  if (model.pieces.empty()) fail(ErrorCode::kDataLoss, "{}: no pieces", model.source);
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    if (!std::isfinite(model.scores[id])) {
      fail(ErrorCode::kDataLoss, "{}: the score of piece {} is {}", model.source, id,
           model.scores[id]);
    }
  }
}

void put_around(const SentencePieces& model, bool wanted, int32_t id, const char* name,
                std::vector<int32_t>& out) {
  if (!wanted) return;
  if (id < 0 || static_cast<size_t>(id) >= model.pieces.size()) {
    fail(ErrorCode::kDataLoss, "{}: a {} is to be added, but there is none", model.source, name);
  }
  out.push_back(id);
}

}  // namespace

SentencePieces read_sentencepiece(std::string_view bytes, const std::string& source) {
  SentencePieces model;
  model.source = source;
  model.unigram = true;  // the default of trainer_spec
  ProtobufFields fields(bytes);
  while (const auto field = fields.next()) {
    if (field->number == 1) read_piece(field->bytes, model);
    if (field->number == 2) read_trainer(field->bytes, model);
    if (field->number == 3) read_normalizer(field->bytes, model);
  }
  if (fields.broken() || model.pieces.empty()) {
    fail(ErrorCode::kDataLoss, "{}: not a SentencePiece model", source);
  }
  return model;
}

TokenizerSpec tokenizer_spec_of(SentencePieces model, bool add_bos, bool add_eos) {
  check(model);
  TokenizerSpec spec;
  spec.source = model.source;
  put_around(model, add_bos, model.bos_id, "BOS", spec.prefix_ids);
  put_around(model, add_eos, model.eos_id, "EOS", spec.suffix_ids);
  spec.model = model.unigram ? TokenizerSpec::Model::kUnigram : TokenizerSpec::Model::kCharacterBpe;
  if (model.unigram) {
    spec.scores.assign(model.scores.begin(), model.scores.end());
    spec.single_precision = true;
  } else {
    spec.merge_ranks = ranks_of(model.scores);
  }
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    if (model.types[id] != Type::kControl && model.types[id] != Type::kUnknown) continue;
    if (model.pieces[id].empty()) continue;
    spec.added.push_back(
        {.id = static_cast<int32_t>(id), .text = model.pieces[id], .special = true});
  }
  TokenizerSpec::Normalize normalize{TokenizerSpec::Normalize::Kind::kSentencePiece, "",
                                     std::move(model.charsmap)};
  normalize.dummy_prefix = model.dummy_prefix;
  normalize.remove_extra_whitespaces = model.remove_extra_whitespaces;
  normalize.escape_whitespaces = model.escape_whitespaces;
  normalize.whitespace_as_suffix = model.whitespace_as_suffix;
  spec.normalizers.push_back(std::move(normalize));
  spec.decode.bytes = TokenizerSpec::Decode::Bytes::kCharacters;
  spec.decode.mark = kMark;
  if (model.remove_extra_whitespaces) {
    spec.decode.lead = TokenizerSpec::Decode::Lead::kDropWhileEmpty;
  } else if (model.dummy_prefix) {
    spec.decode.lead = TokenizerSpec::Decode::Lead::kDropOne;
  }
  spec.unknown_id = model.unknown_id;
  spec.fuse_unknown = true;
  spec.byte_fallback = model.byte_fallback;
  spec.tokens = std::move(model.pieces);
  spec.types = std::move(model.types);
  return spec;
}

}  // namespace trireme
