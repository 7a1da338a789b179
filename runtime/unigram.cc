#include "runtime/unigram.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "runtime/tokenizer_decode.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

constexpr double kUnknownPenalty = 10;
// SentencePiece's sums in float begin again beyond this, so that they stay exact enough.
constexpr double kMostSum = 100000;
constexpr size_t kMaxTokenBytes = 1024;

using Type = TokenizerSpec::Type;

Type type_of(const TokenizerSpec& spec, size_t id) {
  return spec.types.empty() ? Type::kNormal : spec.types[id];
}

}  // namespace

Unigram::Unigram(const TokenizerSpec& spec)
    : single_precision_(spec.single_precision),
      unknown_id_(spec.unknown_id),
      fuse_unknown_(spec.fuse_unknown) {
  std::fill(std::begin(byte_ids_), std::end(byte_ids_), -1);
  double least = DBL_MAX;
  std::vector<Token> tokens;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    const std::string& token = spec.tokens[id];
    const double score = id < spec.scores.size() ? spec.scores[id] : 0;
    if (!std::isfinite(score)) {
      fail(ErrorCode::kDataLoss, "{}: the score of token {} is {}", spec.source, id, score);
    }
    if (const int32_t byte = byte_of_token(token); byte >= 0) {
      byte_ids_[byte] = static_cast<int32_t>(id);
    }
    if (token.empty()) continue;
    const Type type = type_of(spec, id);
    if (type == Type::kNormal) least = std::min(least, score);
    if (type != Type::kNormal && type != Type::kUserDefined) continue;
    if (token.size() > kMaxTokenBytes) {
      fail(ErrorCode::kDataLoss, "{}: token {} has {} bytes; at most {}", spec.source, id,
           token.size(), kMaxTokenBytes);
    }
    tokens.push_back({token, static_cast<int32_t>(id), score});
  }
  // Above all others, and the longest first.
  for (Token& token : tokens) {
    if (type_of(spec, static_cast<size_t>(token.id)) != Type::kUserDefined) continue;
    token.score = static_cast<float>(0.1 * static_cast<double>(token.text.size() - 1));
  }
  build(std::move(tokens));
  unknown_score_ = (least == DBL_MAX ? 0 : least) - kUnknownPenalty;
  if (single_precision_) unknown_score_ = static_cast<float>(unknown_score_);
  byte_fallback_ = spec.byte_fallback &&
                   std::find(std::begin(byte_ids_), std::end(byte_ids_), -1) == std::end(byte_ids_);
  if (unknown_id_ < 0 && !byte_fallback_) {
    fail(ErrorCode::kDataLoss, "{}: a unigram model without an unknown token", spec.source);
  }
}

void Unigram::build(std::vector<Token> tokens) {
  std::sort(tokens.begin(), tokens.end(),
            [](const Token& a, const Token& b) { return a.text < b.text; });
  // For each node the tokens below it, and how many bytes they have in common.
  struct Range {
    size_t begin, end, depth;
  };
  std::vector<Range> ranges = {{0, tokens.size(), 0}};
  nodes_.resize(1);
  labels_.resize(1);
  for (size_t at = 0; at < nodes_.size(); ++at) {
    auto [begin, end, depth] = ranges[at];
    if (begin < end && tokens[begin].text.size() == depth) {
      nodes_[at].id = tokens[begin].id;
      nodes_[at].score = tokens[begin].score;
      ++begin;
    }
    nodes_[at].first = static_cast<uint32_t>(nodes_.size());
    while (begin < end) {
      const char label = tokens[begin].text[depth];
      size_t next = begin;
      while (next < end && tokens[next].text[depth] == label) ++next;
      ranges.push_back({begin, next, depth + 1});
      nodes_.emplace_back();
      labels_.push_back(label);
      ++nodes_[at].count;
      begin = next;
    }
  }
}

const Unigram::Node* Unigram::child_of(const Node& node, char byte) const {
  const char* labels = labels_.data() + node.first;
  const void* found = node.count == 0 ? nullptr : std::memchr(labels, byte, node.count);
  if (found == nullptr) return nullptr;
  return &nodes_[node.first + static_cast<size_t>(static_cast<const char*>(found) - labels)];
}

// best[i]: the best path from 0 to i. SentencePiece has the sums in float, Hugging Face's
// tokenizers in double: it decides where two paths are equal but for rounding.
void Unigram::search(std::string_view piece, std::vector<Scratch::Best>& best) const {
  best.assign(piece.size() + 1, {0, -1, -1});
  size_t reached = 0;
  const auto offer = [&](size_t end, double score, size_t begin, int32_t id) {
    Scratch::Best& target = best[end];
    if (single_precision_) score = static_cast<float>(score);
    if (target.begin >= 0 && !(score > target.score)) return;
    target = {score, static_cast<int32_t>(begin), id};
    reached = std::max(reached, end);
  };
  for (size_t begin = 0; begin < piece.size();) {
    if (single_precision_ && std::abs(best[begin].score) > kMostSum) {
      const auto offset = static_cast<float>(best[begin].score);
      for (size_t i = begin; i <= reached; ++i) {
        best[i].score = static_cast<float>(best[i].score) - offset;
      }
    }
    const double before = best[begin].score;
    const size_t length = utf8_step(piece.substr(begin)).length;
    bool whole = false;
    const Node* node = nodes_.data();
    for (size_t end = begin; end < piece.size();) {
      node = child_of(*node, piece[end]);
      if (node == nullptr) break;
      ++end;
      if (node->id < 0) continue;
      offer(end, node->score + before, begin, node->id);
      whole = whole || end == begin + length;
    }
    if (!whole) {
      offer(begin + length, unknown_score_ + before, begin, -1);
    }
    begin += length;
  }
}

void Unigram::put_unknown(std::string_view text, std::vector<int32_t>& reversed) const {
  if (!byte_fallback_) {
    reversed.push_back(unknown_id_);
    return;
  }
  for (auto byte = text.rbegin(); byte != text.rend(); ++byte) {
    reversed.push_back(byte_ids_[static_cast<uint8_t>(*byte)]);
  }
}

void Unigram::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const {
  if (piece.empty()) return;
  search(piece, scratch.best_);
  std::vector<int32_t>& reversed = scratch.reversed_;
  reversed.clear();
  size_t unknown_end = 0;  // of a run of unknown code points; 0: none
  for (size_t end = piece.size(); end > 0;) {
    const Scratch::Best& node = scratch.best_[end];
    const auto begin = static_cast<size_t>(node.begin);
    const bool unknown = node.id < 0 || node.id == unknown_id_;
    if (!unknown) {
      reversed.push_back(node.id);
      unknown_end = 0;
    } else if (byte_fallback_ || !fuse_unknown_ || unknown_end == 0) {
      put_unknown(piece.substr(begin, end - begin), reversed);
      unknown_end = end;
    }
    end = begin;
  }
  out.insert(out.end(), reversed.rbegin(), reversed.rend());
}

}  // namespace trireme
