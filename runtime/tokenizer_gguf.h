// The tokenizer that a GGUF file's metadata describes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/tokenizer.h"

namespace trireme {

// The values of the keys tokenizer.ggml.* and tokenizer.chat_template, as the file has them.
struct GgufVocab {
  std::string source;  // the file, for messages
  std::string model;   // tokenizer.ggml.model
  std::string pre;     // "" if absent
  std::vector<std::string> tokens;
  std::vector<int32_t>
      token_types;  // 1 normal, 3 control, 4 user-defined, 5 unused, 6 byte; may be empty
  std::vector<std::string> merges;  // "left right"
  std::vector<float> scores;        // models "llama" and "t5"
  std::string charsmap;             // precompiled_charsmap
  std::optional<int64_t> unknown_id;
  std::optional<bool> add_space_prefix;
  std::optional<bool> remove_extra_whitespaces;
  std::optional<int64_t> bos_id;
  std::optional<int64_t> eos_id;
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::string chat_template;
};

// Models: "gpt2" (byte-level BPE, cut as `pre` says), "llama" (SentencePiece's BPE) and "t5" (its
// unigram). Throws kUnimplemented for others and for a `pre` that is not known (with the list of
// those that are), kDataLoss for fields that do not fit together.
TokenizerSpec tokenizer_spec_from_gguf(GgufVocab vocab);

}  // namespace trireme
