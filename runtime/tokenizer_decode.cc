#include "runtime/tokenizer_decode.h"

#include "base/error.h"
#include "runtime/bpe.h"
#include "runtime/tokenizer_normalize.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

using Decode = TokenizerSpec::Decode;

constexpr std::string_view kReplacement = "\uFFFD";

std::string replaced(std::string_view text, std::string_view mark, std::string_view by) {
  std::string out;
  size_t done = 0;
  for (size_t at = 0; (at = text.find(mark, done)) != std::string_view::npos;) {
    out.append(text.substr(done, at - done)).append(by);
    done = at + mark.size();
  }
  return out.append(text.substr(done));
}

}  // namespace

int32_t byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int32_t byte = 0;
  for (const char c : token.substr(3, 2)) {
    if (c >= '0' && c <= '9') {
      byte = byte * 16 + (c - '0');
    } else if ((c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f')) {
      byte = byte * 16 + ((c | 0x20) - 'a' + 10);
    } else {
      return -1;
    }
  }
  return byte;
}

TokenTexts::TokenTexts(const TokenizerSpec& spec, Spelled spelled)
    : spec_(&spec), spelled_(std::move(spelled)), texts_(spec.tokens.size()) {
  const Normalizer steps(spec.decode.steps, nullptr, spec.source);
  const bool has_bytes =
      spec.decode.bytes == Decode::Bytes::kRuns || spec.decode.bytes == Decode::Bytes::kCharacters;
  if (has_bytes) is_byte_.resize(texts_.size());
  Regex::Scratch scratch;
  for (size_t id = 0; id < texts_.size(); ++id) {
    const std::string& token = spelled_(static_cast<int32_t>(id));
    if (spec.decode.bytes == Decode::Bytes::kAlphabet) {
      texts_[id] = bytes_of_token(token).value_or(token);
      continue;
    }
    const int32_t byte = has_bytes ? byte_of_token(token) : -1;
    if (byte >= 0) {
      is_byte_[id] = true;
      texts_[id].push_back(static_cast<char>(byte));
    } else {
      texts_[id] = steps.empty() ? token : steps.run(token, scratch).text;
      if (!spec.decode.mark.empty()) texts_[id] = replaced(texts_[id], spec.decode.mark, " ");
    }
  }
}

std::string TokenTexts::leading_text(int32_t id, bool all_marks) const {
  const std::string& mark = spec_->decode.mark;
  const std::string& token = spelled_(id);
  if (mark.empty() || is_byte(id)) return text(id);
  if (all_marks) return replaced(token, mark, "");
  return token.starts_with(mark) ? replaced(std::string_view(token).substr(mark.size()), mark, " ")
                                 : text(id);
}

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

// Text that is whole, on its way through what is stripped from both ends.
void StreamingDetokenizer::put_text(std::string& out, std::string_view text) {
  if (text.empty()) return;
  const Decode& decode = tokenizer_->spec().decode;
  const std::string& strip = decode.strip;
  if (strip.empty()) {
    empty_ = false;
    out.append(text);
    return;
  }
  while (empty_ && stripped_ < decode.strip_start && text.starts_with(strip)) {
    text.remove_prefix(strip.size());
    ++stripped_;
  }
  if (text.empty()) return;
  empty_ = false;
  if (decode.strip_stop == 0) {
    out.append(text);
    return;
  }
  held_.append(text);
  size_t keep = held_.size();
  for (int32_t i = 0; i < decode.strip_stop; ++i) {
    if (!std::string_view(held_).substr(0, keep).ends_with(strip)) break;
    keep -= strip.size();
  }
  out.append(held_, 0, keep);
  held_.erase(0, keep);
}

// The bytes that wait, as far as they are settled.
void StreamingDetokenizer::put_bytes(std::string& out, bool last) {
  if (bytes_.empty()) return;
  std::string text;
  size_t used = bytes_.size();
  const Decode::Bytes rule = tokenizer_->spec().decode.bytes;
  if (rule != Decode::Bytes::kRuns) {
    used = append_lossy_utf8(text, bytes_, last, rule == Decode::Bytes::kCharacters);
  } else if (!last) {
    return;
  } else if (!find_invalid_utf8(bytes_)) {
    text = bytes_;
  } else {
    for (size_t i = 0; i < bytes_.size(); ++i) text += kReplacement;
  }
  bytes_.erase(0, used);
  put_text(out, text);
}

void StreamingDetokenizer::push_onto(std::string& out, int32_t id) {
  const TokenTexts& texts = tokenizer_->texts();
  const bool special = tokenizer_->is_special(id);  // checks the id
  if (skip_special_ && special) return;
  const Decode& decode = tokenizer_->spec().decode;
  const bool first = first_;
  first_ = false;
  if (decode.bytes == Decode::Bytes::kAlphabet || texts.is_byte(id)) {
    if (bytes_.empty() && decode.strip.empty() && decode.bytes == Decode::Bytes::kAlphabet &&
        !find_invalid_utf8(texts.text(id))) {
      out.append(texts.text(id));
      return;
    }
    bytes_.append(texts.text(id));
    put_bytes(out, false);
    return;
  }
  put_bytes(out, true);
  const bool leading = decode.lead == Decode::Lead::kDropWhileEmpty ? empty_ : first;
  if (leading && decode.lead != Decode::Lead::kKeep) {
    put_text(out, texts.leading_text(id, decode.lead == Decode::Lead::kDropFirst));
  } else {
    put_text(out, texts.text(id));
  }
}

void StreamingDetokenizer::finish_onto(std::string& out) {
  put_bytes(out, true);
  held_.clear();
}

std::string StreamingDetokenizer::push(int32_t id) {
  std::string piece;
  push_onto(piece, id);
  return piece;
}

std::string StreamingDetokenizer::finish() {
  std::string piece;
  finish_onto(piece);
  return piece;
}

}  // namespace trireme
