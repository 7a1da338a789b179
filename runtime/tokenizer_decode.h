// What each token is as text.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/tokenizer.h"

namespace trireme {

// The byte that "<0xHH>" stands for; -1: it is another token.
int32_t byte_of_token(std::string_view token);

class TokenTexts {
 public:
  // `spelled`: the token of an id as the model or the added tokens spell it; outlives this.
  using Spelled = std::function<const std::string&(int32_t id)>;
  TokenTexts(const TokenizerSpec& spec, Spelled spelled);

  // What the token adds to a text, but for the beginning; may be part of a UTF-8 sequence.
  const std::string& text(int32_t id) const { return texts_[static_cast<size_t>(id)]; }
  // A token that stands for one byte.
  bool is_byte(int32_t id) const {
    return !is_byte_.empty() && is_byte_[static_cast<size_t>(id)];
  }
  // The text of a token at the beginning: without all its marks, or the one that it begins with.
  std::string leading_text(int32_t id, bool all_marks) const;

 private:
  const TokenizerSpec* spec_;
  Spelled spelled_;
  std::vector<std::string> texts_;
  std::vector<bool> is_byte_;  // empty: no token is
};

}  // namespace trireme
