// Text to token ids and back: byte-level and SentencePiece-style BPE, unigram, tiktoken's ranks.
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

// The format-neutral description that all file readers fill.
struct TokenizerSpec {
  std::string source;  // the file it came from, for messages; may be ""

  enum class Model {
    kByteBpe,       // over bytes; tokens are spelled in the byte-level alphabet
    kCharacterBpe,  // over code points, as SentencePiece and Hugging Face's byte_fallback files
    kUnigram,       // the segmentation of the greatest sum of scores
  };
  Model model = Model::kByteBpe;
  // id -> token of the model; "" where unused or only in `added`.
  std::vector<std::string> tokens;
  // Of each id; empty: all kNormal. Texts never become kUnknown, kControl, kUnused or kByte by
  // spelling them, and kUserDefined always wins and merges with nothing (SentencePiece's rules).
  enum class Type : uint8_t { kNormal, kUnknown, kControl, kUserDefined, kUnused, kByte };
  std::vector<Type> types;
  // BPE merges, best first; or (then `merges` is empty) a rank for each id, equal ones allowed:
  // any two neighbours that together spell a token merge, the least rank first. -1: never.
  std::vector<std::pair<std::string, std::string>> merges;
  std::vector<int32_t> merge_ranks;
  std::vector<double> scores;  // kUnigram: log-probability of each id
  bool single_precision = false;  // kUnigram: path scores in float, as SentencePiece has them
  bool byte_fallback = false;     // what has no token becomes the tokens "<0x00>" to "<0xFF>"
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
      kMetaspace,    // spaces become `pattern`, one is put before pieces, cut before each
    };
    Kind kind;
    std::string pattern;  // for the regex kinds; kMetaspace: one character
    bool invert = false;  // take what lies between the matches for the matches
    enum class Prepend { kNever, kFirst, kAlways };
    Prepend prepend = Prepend::kNever;  // kMetaspace; kFirst: where the text begins
    bool cut = true;                    // kMetaspace
  };
  std::vector<Split> splits;
  bool ignore_merges = false;  // a pre-token that is itself a token is taken whole

  // One step of normalization, applied in order to what lies between raw added tokens.
  struct Normalize {
    enum class Kind {
      kNfc,
      kNfd,
      kNfkc,
      kNfkd,
      kLowercase,
      kStripLeft,  // white space
      kStripRight,
      kReplaceText,   // each `pattern`, literally, by `content`
      kReplaceRegex,  // each match of `pattern`
      kPrepend,       // `content` before a text that is not empty
      kPrecompiled,   // `content` is a charsmap, applied as Hugging Face's tokenizers do
      kSentencePiece,  // SentencePiece's own: the charsmap `content` (may be "") and the flags
    };
    Kind kind;
    std::string pattern;
    std::string content;
    bool dummy_prefix = false;  // these four: kSentencePiece
    bool remove_extra_whitespaces = false;
    bool escape_whitespaces = false;
    bool whitespace_as_suffix = false;
  };
  std::vector<Normalize> normalizers;

  // How tokens become text.
  struct Decode {
    enum class Bytes {
      kAlphabet,    // tokens are spelled in the byte-level alphabet
      kNone,        // tokens are text
      kRuns,        // "<0xHH>" is a byte; a run that is not UTF-8 is one U+FFFD a byte
      kCharacters,  // "<0xHH>" is a byte; each that is not part of UTF-8 becomes U+FFFD
    };
    Bytes bytes = Bytes::kAlphabet;
    std::vector<Normalize> steps;  // kReplaceText and kReplaceRegex, applied to each token
    std::string mark;              // becomes a space ("": none), and at the beginning:
    enum class Lead {
      kKeep,
      kDropFirst,      // the first token loses all its marks (Metaspace)
      kDropOne,        // the first token loses one leading mark (SentencePiece's dummy prefix)
      kDropWhileEmpty  // and so do those after it as long as the text is empty
    };
    Lead lead = Lead::kKeep;
    std::string strip;  // one character; up to so many of it are cut from the whole text
    int32_t strip_start = 0;
    int32_t strip_stop = 0;
  };
  Decode decode;

  int32_t unknown_id = -1;   // for what has no token; -1: it is dropped
  bool fuse_unknown = false;  // a run of it is one unknown_id
  std::vector<int32_t> prefix_ids;  // what the post-processor puts before every text (e.g. BOS)
  std::vector<int32_t> suffix_ids;
  std::string chat_template;  // Jinja source as the model file has it; "" if none
};

// Reads tokenizer.json, and the chat template from chat_template.jinja or tokenizer_config.json
// beside it. Throws kDataLoss with the file and the missing or wrong field (e.g. no merges),
// kUnimplemented naming a model type, normalizer or pre-tokenizer that is not supported.
TokenizerSpec read_tokenizer_json(const std::string& path);
// The same from a file's text, without the template; `source` is for messages.
TokenizerSpec parse_tokenizer_json(std::string_view text, const std::string& source);

// The Jinja source from chat_template.jinja or tokenizer_config.json in `folder`; "" if none.
std::string read_chat_template(const std::string& folder);

class TokenTexts;

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

  // No text of n bytes has fewer than n / max_bytes_per_token() tokens; 0: there is no such bound
  // (a normalizer may shorten texts, unknown characters may be dropped or fused).
  size_t max_bytes_per_token() const;

  int32_t vocab_size() const;  // every id is below it
  const TokenizerSpec& spec() const;

 private:
  friend class StreamingDetokenizer;
  struct Impl;
  const TokenTexts& texts() const;

  std::unique_ptr<Impl> impl_;
};

// Turns a stream of ids into text pieces that are each whole UTF-8: an unfinished sequence is held
// back until it completes or is found broken (then U+FFFD), and so is a run of byte tokens while
// what follows may still break it. The concatenation of all pieces equals decode() of all ids.
class StreamingDetokenizer {
 public:
  explicit StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special = true);
  std::string push(int32_t id);
  std::string finish();  // what is still held back

 private:
  friend class Tokenizer;
  void push_onto(std::string& out, int32_t id);
  void put_text(std::string& out, std::string_view text);
  void put_bytes(std::string& out, bool last);
  void finish_onto(std::string& out);

  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string bytes_;  // not yet text
  std::string held_;   // text that may be stripped from the end
  bool first_ = true;  // no token yet
  bool empty_ = true;  // no text yet
  int32_t stripped_ = 0;
};

}  // namespace trireme
