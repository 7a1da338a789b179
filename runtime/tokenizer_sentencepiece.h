// What SentencePiece's own files say, and what GGUF metadata says in its words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer.h"

namespace trireme {

struct SentencePieces {
  std::string source;
  bool unigram = false;
  std::vector<std::string> pieces;
  std::vector<float> scores;
  std::vector<TokenizerSpec::Type> types;
  std::string charsmap;
  bool dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool whitespace_as_suffix = false;
  bool byte_fallback = false;
  int32_t unknown_id = 0;
  int32_t bos_id = 1;  // -1: none
  int32_t eos_id = 2;
};

// Reads a model file's bytes (sentencepiece_model.proto). Throws kDataLoss for what is no such
// message, kUnimplemented for a model of words or characters.
SentencePieces read_sentencepiece(std::string_view bytes, const std::string& source);

// `add_bos`, `add_eos`: put around every text. Each part of a text between special tokens is
// encoded as SentencePiece encodes a text.
TokenizerSpec tokenizer_spec_of(SentencePieces model, bool add_bos, bool add_eos);

}  // namespace trireme
