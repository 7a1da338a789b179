// The tokenizer that comes with a model.
#pragma once

#include <memory>
#include <string>

#include "runtime/tokenizer.h"

namespace trireme {

// From the tokenizer's file beside config.json (runtime/tokenizer_folder.h), or from a GGUF file's
// metadata. Null where the model has
// none; a broken one throws. Every id must be below `vocab`, the rows of the model's embedding.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& model, int64_t vocab);

}  // namespace trireme
