// Vocabularies of byte strings in the order in which they were learned: tiktoken's rank files, as
// Llama 3 and Qwen have them, and Mistral's tekken.json.
#pragma once

#include <string>
#include <string_view>

#include "runtime/tokenizer.h"

namespace trireme {

// A text of lines "BASE64 RANK". The file does not say how texts are cut nor which tokens are
// special; that is known for Llama 3 (128,000 ranks) and Qwen (151,643), and others are refused
// with kUnimplemented. Throws kDataLoss for what is no such file.
TokenizerSpec read_ranks(std::string_view text, const std::string& source);

// Whether a file begins as one of rank lines.
bool is_ranks(std::string_view text);

// tekken.json; throws kDataLoss with the field that is missing or wrong.
TokenizerSpec read_tekken(const std::string& path);
TokenizerSpec parse_tekken(std::string_view text, const std::string& source);

}  // namespace trireme
