#include "runtime/tokenizer.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <unordered_set>

#include "base/error.h"
#include "runtime/bpe.h"
#include "runtime/bpe_hash.h"
#include "runtime/tokenizer_added.h"
#include "runtime/tokenizer_decode.h"
#include "runtime/tokenizer_normalize.h"
#include "runtime/tokenizer_pretokenize.h"
#include "runtime/unicode.h"
#include "runtime/unigram.h"

namespace trireme {
namespace {

constexpr size_t kMaxText = 1 << 30;        // positions in a text are 32-bit
constexpr size_t kKeepScratch = 256 << 10;  // buffers that have seen longer texts are freed

void check_utf8(const TokenizerSpec& spec, std::string_view text, std::string_view what, size_t i) {
  if (find_invalid_utf8(text)) {
    fail(ErrorCode::kDataLoss, "{}: {}[{}] is not UTF-8", spec.source, what, i);
  }
}

void check_id(const TokenizerSpec& spec, int32_t id, std::string_view what) {
  if (id < 0 || static_cast<size_t>(id) >= spec.tokens.size()) {
    fail(ErrorCode::kDataLoss, "{}: {} has id {}, but the vocabulary has {} ids", spec.source, what,
         id, spec.tokens.size());
  }
}

StringIds index_tokens(const TokenizerSpec& spec) {
  if (spec.tokens.empty() || spec.tokens.size() > INT32_MAX) {
    fail(ErrorCode::kDataLoss, "{}: a vocabulary of {} tokens", spec.source, spec.tokens.size());
  }
  StringIds ids;
  ids.reserve(spec.tokens.size());
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    const std::string& token = spec.tokens[id];
    if (token.empty()) continue;
    check_utf8(spec, token, "tokens", id);
    const auto [other, added] = ids.emplace(token, static_cast<int32_t>(id));
    if (!added) {
      fail(ErrorCode::kDataLoss, "{}: tokens {} and {} are both '{}'", spec.source, other->second,
           id, token);
    }
  }
  return ids;
}

void check_sizes(const TokenizerSpec& spec) {
  const size_t ids = spec.tokens.size();
  const auto check = [&](size_t size, const char* what) {
    if (size != 0 && size != ids) {
      fail(ErrorCode::kDataLoss, "{}: {} tokens but {} {}", spec.source, ids, size, what);
    }
  };
  check(spec.types.size(), "token types");
  check(spec.merge_ranks.size(), "ranks");
  check(spec.scores.size(), "scores");
}

// The model's user-defined tokens as the added tokens that they are like.
std::vector<AddedToken> user_defined(const TokenizerSpec& spec) {
  std::vector<AddedToken> out;
  for (size_t id = 0; id < spec.types.size() && id < spec.tokens.size(); ++id) {
    if (spec.types[id] != TokenizerSpec::Type::kUserDefined || spec.tokens[id].empty()) continue;
    out.push_back({.id = static_cast<int32_t>(id), .text = spec.tokens[id]});
  }
  return out;
}

}  // namespace

struct Tokenizer::Impl {
  // What one call to encode() works with.
  struct Scratch {
    PreTokenizer::Scratch pre;
    Bpe::Scratch bpe;
    Unigram::Scratch unigram;
    std::vector<AddedTokenMatcher::Part> parts, normalized_parts, fixed_parts;
  };

  explicit Impl(TokenizerSpec s)
      : spec(std::move(s)),
        model_ids(index_tokens(spec)),
        pre(spec.splits),
        fixed(user_defined(spec), false, nullptr),
        normalizer(spec.normalizers, fixed.empty() ? nullptr : &fixed, spec.source),
        raw_added(spec.added, false, nullptr),
        normalized_added(spec.added, true,
                         [this](const std::string& text) {
                           Regex::Scratch scratch;
                           return normalizer.run(text, scratch).text;
                         }),
        special(spec.tokens.size(), false) {
    check_sizes(spec);
    if (spec.unknown_id >= 0) check_id(spec, spec.unknown_id, "the unknown token");
    if (spec.model == TokenizerSpec::Model::kUnigram) {
      unigram.emplace(spec);
    } else {
      bpe.emplace(spec, model_ids);
    }
    index_added();
    for (const int32_t id : spec.prefix_ids) check_id(spec, id, "a token of the post-processor");
    for (const int32_t id : spec.suffix_ids) check_id(spec, id, "a token of the post-processor");
    texts.emplace(spec, [this](int32_t id) -> const std::string& { return text_of(id); });
    find_bound();
  }

  void find_bound() {
    const bool shrinks = !spec.normalizers.empty() || spec.fuse_unknown ||
                         std::any_of(spec.added.begin(), spec.added.end(), [](const auto& token) {
                           return token.lstrip || token.rstrip;
                         });
    bool lossless = spec.model == TokenizerSpec::Model::kByteBpe && !shrinks;
    for (int byte = 0; byte < 256 && lossless; ++byte) {
      lossless = spec.unknown_id >= 0 || model_ids.contains(token_of_byte(static_cast<uint8_t>(byte)));
    }
    for (const TokenizerSpec::Split& split : spec.splits) {
      lossless = lossless && split.kind != TokenizerSpec::Split::Kind::kRegexRemoved;
    }
    if (!lossless) return;
    longest = 1;
    for (int32_t id = 0; id < static_cast<int32_t>(special.size()); ++id) {
      longest = std::max(longest, texts->text(id).size());
    }
  }

  void index_added() {
    for (size_t i = 0; i < spec.added.size(); ++i) {
      const AddedToken& token = spec.added[i];
      check_utf8(spec, token.text, "added tokens", i);
      check_id(spec, token.id, "an added token");
      const std::string& model = spec.tokens[token.id];
      const bool clash = (!model.empty() && model != token.text) ||
                         !added_by_id.emplace(token.id, &token).second ||
                         !added_ids.emplace(token.text, token.id).second;
      if (clash) {
        fail(ErrorCode::kDataLoss, "{}: added token '{}' or its id {} is used twice", spec.source,
             token.text, token.id);
      }
      special[token.id] = token.special;
    }
  }

  const std::string& text_of(int32_t id) const {
    const auto added = added_by_id.find(id);
    return added == added_by_id.end() ? spec.tokens[id] : added->second->text;
  }

  std::unique_ptr<Scratch> take_scratch() {
    const std::lock_guard lock(mutex);
    if (free_scratch.empty()) return std::make_unique<Scratch>();
    auto scratch = std::move(free_scratch.back());
    free_scratch.pop_back();
    return scratch;
  }

  void give_scratch(std::unique_ptr<Scratch> scratch) {
    const std::lock_guard lock(mutex);
    free_scratch.push_back(std::move(scratch));
  }

  void encode_text(std::string_view text, bool at_start, Scratch& scratch,
                   std::vector<int32_t>& ids) const {
    for (const std::string_view piece : pre.split(text, at_start, scratch.pre)) {
      encode_piece(piece, scratch, ids);
    }
  }

  void encode_piece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
    if (unigram) {
      unigram->encode(piece, scratch.unigram, ids);
      return;
    }
    if (fixed.empty()) {
      bpe->encode(piece, scratch.bpe, ids);
      return;
    }
    scratch.fixed_parts.clear();
    fixed.split(piece, scratch.pre.regex, scratch.fixed_parts);
    for (const auto& part : scratch.fixed_parts) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        bpe->encode(part.text, scratch.bpe, ids);
      }
    }
  }

  // A text between raw added tokens; `at_start`: the one that the whole text begins with.
  void encode_part(std::string_view text, bool at_start, Scratch& scratch,
                   std::vector<int32_t>& ids) const {
    Normalizer::Result normalized;
    if (!normalizer.empty()) {
      normalized = normalizer.run(text, scratch.pre.regex);
      text = normalized.text;
      at_start = at_start && !normalized.cut;
    }
    scratch.normalized_parts.clear();
    normalized_added.split(text, scratch.pre.regex, scratch.normalized_parts);
    for (const auto& part : scratch.normalized_parts) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        encode_text(part.text, at_start && part.text.data() == text.data(), scratch, ids);
      }
    }
  }

  const TokenizerSpec spec;
  const StringIds model_ids;
  std::optional<Bpe> bpe;  // one of these two
  std::optional<Unigram> unigram;
  const PreTokenizer pre;
  const AddedTokenMatcher fixed;  // user-defined tokens of the model
  const Normalizer normalizer;
  const AddedTokenMatcher raw_added, normalized_added;
  std::unordered_map<int32_t, const AddedToken*> added_by_id;
  StringIds added_ids;
  std::optional<TokenTexts> texts;
  size_t longest = 0;  // see max_bytes_per_token()
  std::vector<bool> special;
  std::mutex mutex;  // of free_scratch
  std::vector<std::unique_ptr<Scratch>> free_scratch;
};

Tokenizer::Tokenizer(TokenizerSpec spec) : impl_(std::make_unique<Impl>(std::move(spec))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  if (text.size() > kMaxText) {
    fail(ErrorCode::kInvalidArgument, "text of {} bytes; at most {}", text.size(), kMaxText);
  }
  if (const auto offset = find_invalid_utf8(text)) {
    fail(ErrorCode::kInvalidArgument, "text is not UTF-8 at byte {}", *offset);
  }
  std::vector<int32_t> ids;
  if (add_special) ids = impl_->spec.prefix_ids;
  auto scratch = impl_->take_scratch();
  scratch->parts.clear();
  impl_->raw_added.split(text, scratch->pre.regex, scratch->parts);
  for (const auto& part : scratch->parts) {
    if (part.id >= 0) {
      ids.push_back(part.id);
    } else {
      impl_->encode_part(part.text, part.text.data() == text.data(), *scratch, ids);
    }
  }
  if (text.size() <= kKeepScratch) impl_->give_scratch(std::move(scratch));
  if (add_special) {
    ids.insert(ids.end(), impl_->spec.suffix_ids.begin(), impl_->spec.suffix_ids.end());
  }
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string text;
  StreamingDetokenizer stream(*this, skip_special);
  for (const int32_t id : ids) stream.push_onto(text, id);
  stream.finish_onto(text);
  return text;
}

const TokenTexts& Tokenizer::texts() const { return *impl_->texts; }

size_t Tokenizer::max_bytes_per_token() const { return impl_->longest; }

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) {
    fail(ErrorCode::kInvalidArgument, "token id {} is not in [0, {})", id, vocab_size());
  }
  return impl_->texts->text(id);
}

bool Tokenizer::is_special(int32_t id) const {
  token_bytes(id);
  return impl_->special[id];
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->special.size()); }

const TokenizerSpec& Tokenizer::spec() const { return impl_->spec; }

}  // namespace trireme
