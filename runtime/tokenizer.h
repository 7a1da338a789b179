// Byte-level BPE: text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

// One entry of tokenizer.json's `added_tokens` (in GGUF: control and user-defined token types).
struct AddedToken {
  int32_t id = 0;
  std::string text;
  bool special = false;
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = false;
};

// The format-neutral description that both file readers fill.
struct TokenizerSpec {
  std::vector<std::string> tokens;  // id -> token in the byte-level alphabet; "" where unused
  std::vector<std::pair<std::string, std::string>> merges;  // best first
  std::vector<AddedToken> added;
  // Pre-tokenization: applied in order, each a PCRE2 pattern with a behaviour, or digit splitting.
  struct Split {
    enum class Kind { kRegexIsolated, kRegexRemoved, kDigitsIndividual, kDigitsContiguous };
    Kind kind;
    std::string pattern;
  };
  std::vector<Split> splits;
  bool add_prefix_space = false;
  bool ignore_merges = false;  // a pre-token that is itself a token is taken whole
  bool nfc = false;
  std::vector<int32_t> prefix_ids;  // what the post-processor puts before every text (e.g. BOS)
  std::vector<int32_t> suffix_ids;
  std::string chat_template;  // Jinja source as the model file has it; "" if none
};

// Throws kDataLoss with the file and the missing or wrong field (e.g. no merges), kUnimplemented
// naming a model type, normalizer or pre-tokenizer that is not supported.
TokenizerSpec read_tokenizer_json(const std::string& path);

class Tokenizer {
 public:
  explicit Tokenizer(TokenizerSpec spec);  // checks it; throws kDataLoss
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  // Ids of UTF-8 text. `add_special` puts prefix_ids and suffix_ids around it. Invalid UTF-8
  // throws kInvalidArgument with the byte offset. Thread-safe.
  std::vector<int32_t> encode(std::string_view text, bool add_special = true) const;

  // Text of ids; bytes that are not UTF-8 become U+FFFD, as Hugging Face's decoder does.
  // Throws kInvalidArgument for an id out of range.
  std::string decode(const std::vector<int32_t>& ids, bool skip_special = true) const;

  // The raw bytes of one token (may be part of a UTF-8 sequence); empty for a skipped special.
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;
  int32_t vocab_size() const;
  std::optional<int32_t> token_id(std::string_view text) const;
  const TokenizerSpec& spec() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Turns a stream of ids into text pieces that are each whole UTF-8: an unfinished sequence is held
// back until it completes or is found broken (then U+FFFD). The concatenation of all pieces equals
// decode() of all ids.
class StreamingDetokenizer {
 public:
  explicit StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special = true);
  std::string push(int32_t id);
  std::string finish();  // what is still held back

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace trireme
