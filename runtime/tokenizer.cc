#include "runtime/tokenizer.h"

#include <algorithm>
#include <mutex>
#include <unordered_set>

#include "base/error.h"
#include "runtime/bpe.h"
#include "runtime/tokenizer_added.h"
#include "runtime/tokenizer_pretokenize.h"
#include "runtime/unicode.h"

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

}  // namespace

struct Tokenizer::Impl {
  // What one call to encode() works with.
  struct Scratch {
    PreTokenizer::Scratch pre;
    Bpe::Scratch bpe;
    std::vector<AddedTokenMatcher::Part> parts, normalized_parts;
  };

  explicit Impl(TokenizerSpec s)
      : spec(std::move(s)),
        model_ids(index_tokens(spec)),
        bpe(spec, model_ids),
        pre(spec.splits),
        raw_added(spec.added, false, false),
        normalized_added(spec.added, true, spec.nfc),
        bytes(spec.tokens.size()),
        special(spec.tokens.size(), false) {
    index_added();
    for (const int32_t id : spec.prefix_ids) check_id(spec, id, "a token of the post-processor");
    for (const int32_t id : spec.suffix_ids) check_id(spec, id, "a token of the post-processor");
    if (spec.unknown_id >= 0) check_id(spec, spec.unknown_id, "the unknown token");
    for (size_t id = 0; id < bytes.size(); ++id) {
      const std::string& text = text_of(static_cast<int32_t>(id));
      bytes[id] = bytes_of_token(text).value_or(text);
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

  void encode_text(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
    for (const std::string_view piece : pre.split(text, scratch.pre)) {
      bpe.encode(piece, scratch.bpe, ids);
    }
  }

  void encode_part(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
    std::string normalized;
    if (spec.nfc) text = normalized = trireme::nfc(text);
    scratch.normalized_parts.clear();
    normalized_added.split(text, scratch.pre.regex, scratch.normalized_parts);
    for (const auto& part : scratch.normalized_parts) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        encode_text(part.text, scratch, ids);
      }
    }
  }

  const TokenizerSpec spec;
  const StringIds model_ids;
  const Bpe bpe;
  const PreTokenizer pre;
  const AddedTokenMatcher raw_added, normalized_added;
  std::unordered_map<int32_t, const AddedToken*> added_by_id;
  StringIds added_ids;
  std::vector<std::string> bytes;  // id -> what it decodes to
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
      impl_->encode_part(part.text, *scratch, ids);
    }
  }
  if (text.size() <= kKeepScratch) impl_->give_scratch(std::move(scratch));
  if (add_special) {
    ids.insert(ids.end(), impl_->spec.suffix_ids.begin(), impl_->spec.suffix_ids.end());
  }
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    const std::string_view token = token_bytes(id);
    if (!skip_special || !is_special(id)) bytes.append(token);
  }
  std::string text;
  text.reserve(bytes.size());
  append_lossy_utf8(text, bytes, true);
  return text;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) {
    fail(ErrorCode::kInvalidArgument, "token id {} is not in [0, {})", id, vocab_size());
  }
  return impl_->bytes[id];
}

bool Tokenizer::is_special(int32_t id) const {
  token_bytes(id);
  return impl_->special[id];
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->bytes.size()); }

const TokenizerSpec& Tokenizer::spec() const { return impl_->spec; }

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

std::string StreamingDetokenizer::push(int32_t id) {
  const std::string_view bytes = tokenizer_->token_bytes(id);
  if (skip_special_ && tokenizer_->is_special(id)) return {};
  pending_.append(bytes);
  std::string piece;
  pending_.erase(0, append_lossy_utf8(piece, pending_, false));
  return piece;
}

std::string StreamingDetokenizer::finish() {
  std::string piece;
  append_lossy_utf8(piece, pending_, true);
  pending_.clear();
  return piece;
}

}  // namespace trireme
