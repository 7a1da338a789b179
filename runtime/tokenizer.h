// Byte-level BPE: text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
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
  std::string source;  // the file it came from, for messages; may be ""
  // id -> token of the model in the byte-level alphabet; "" where unused or only in `added`.
  std::vector<std::string> tokens;
  std::vector<std::pair<std::string, std::string>> merges;  // best first
  std::vector<AddedToken> added;

  // One step of pre-tokenization; the steps are applied in order, each to every piece of the one
  // before. A pattern is a regex as Hugging Face's tokenizers read it (Oniguruma's syntax).
  struct Split {
    enum class Kind {
      kRegexIsolated,  // a match is a piece, and so is what lies between two
      kRegexRemoved,
      kRegexContiguous,  // as isolated, but neighbouring matches are one piece
      kRegexMergedWithPrevious,
      kRegexMergedWithNext,
      kDigitsIndividual,
      kDigitsContiguous,
      kPrefixSpace,  // a space before each piece that begins with none
    };
    Kind kind;
    std::string pattern;  // for the regex kinds
    bool invert = false;  // take what lies between the matches for the matches
  };
  std::vector<Split> splits;
  bool ignore_merges = false;  // a pre-token that is itself a token is taken whole
  bool nfc = false;
  int32_t unknown_id = -1;          // for a byte that has no token; -1: such bytes are dropped
  bool fuse_unknown = false;        // a run of such bytes is one unknown_id
  std::vector<int32_t> prefix_ids;  // what the post-processor puts before every text (e.g. BOS)
  std::vector<int32_t> suffix_ids;
  std::string chat_template;  // Jinja source as the model file has it; "" if none
};

// Reads tokenizer.json, and the chat template from chat_template.jinja or tokenizer_config.json
// beside it. Throws kDataLoss with the file and the missing or wrong field (e.g. no merges),
// kUnimplemented naming a model type, normalizer or pre-tokenizer that is not supported.
TokenizerSpec read_tokenizer_json(const std::string& path);

class Tokenizer {
 public:
  explicit Tokenizer(TokenizerSpec spec);  // checks it; throws kDataLoss
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // Ids of UTF-8 text. `add_special` puts prefix_ids and suffix_ids around it. Invalid UTF-8
  // throws kInvalidArgument with the byte offset. Thread-safe.
  std::vector<int32_t> encode(std::string_view text, bool add_special = true) const;

  // Text of ids; bytes that are not UTF-8 become U+FFFD, as Hugging Face's decoder does.
  // Throws kInvalidArgument for an id out of range.
  std::string decode(const std::vector<int32_t>& ids, bool skip_special = true) const;

  // The raw bytes of one token, special or not (may be part of a UTF-8 sequence); empty for an id
  // that no token has. These two throw kInvalidArgument for an id out of range.
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;

  int32_t vocab_size() const;  // every id is below it
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
