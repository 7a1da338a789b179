// The tokenizer that lies beside a model's safetensors files.
#pragma once

#include <string>

#include "runtime/tokenizer.h"

namespace trireme {

// From a folder: tokenizer.json, else tekken.json, else tokenizer.model (SentencePiece's, or
// tiktoken's ranks), else a file *.tiktoken, with the chat template beside it. From a file: by its
// name and content. Throws kNotFound if there is none.
TokenizerSpec read_tokenizer(const std::string& path);

// Whether the folder holds one.
bool has_tokenizer(const std::string& folder);

}  // namespace trireme
