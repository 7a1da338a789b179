// What a model file or directory holds, whether or not this program can run it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/model/json_file.h"

namespace trireme {

struct TensorFacts {
  std::string name;              // the file's own
  std::string type;              // the file's own, e.g. "Q4_K" or "BF16"
  std::vector<int64_t> shape;    // outermost first
  std::optional<int64_t> bytes;  // empty: of a type whose size is not known here
  int64_t elements = 0;
};

struct ModelFacts {
  std::string path;
  std::string format;  // "GGUF v3" or "safetensors"
  // config.json; of GGUF the metadata by key, where an array is "ELEMENT[COUNT]".
  Json config;
  std::vector<TensorFacts> tensors;  // in the order of the names
  // The kind as the file names it, e.g. "BPE" (tokenizer.json), "gpt2, smollm" (GGUF: model and
  // pre-tokenizer), "SentencePiece"; empty: none.
  std::string tokenizer;
  std::string chat_template;  // Jinja source; empty: none
  std::string refusal;        // why this program does not run the model; empty: it does
};

// `path` as of open_model. Throws kNotFound and kDataLoss for what is no model file or is damaged.
ModelFacts inspect_model(const std::string& path);

}  // namespace trireme
