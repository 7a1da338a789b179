#include "runtime/unigram.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <unordered_map>

#include "base/error.h"
#include "runtime/bpe_hash.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

constexpr double kUnknownPenalty = 10;
constexpr size_t kMaxTokenBytes = 1024;

using Type = TokenizerSpec::Type;

Type type_of(const TokenizerSpec& spec, size_t id) {
  return spec.types.empty() ? Type::kNormal : spec.types[id];
}

}  // namespace

Unigram::Unigram(const TokenizerSpec& spec)
    : scores_(spec.scores),
      user_bytes_(spec.tokens.size()),
      single_precision_(spec.single_precision),
      unknown_id_(spec.unknown_id),
      fuse_unknown_(spec.fuse_unknown) {
  scores_.resize(spec.tokens.size());
  edges_.resize(1 << 12);
  std::fill(std::begin(byte_ids_), std::end(byte_ids_), -1);
  double least = DBL_MAX;
  greatest_ = FLT_MIN;  // where SentencePiece begins
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    const std::string& token = spec.tokens[id];
    const Type type = type_of(spec, id);
    if (!std::isfinite(scores_[id])) {
      fail(ErrorCode::kDataLoss, "{}: the score of token {} is {}", spec.source, id, scores_[id]);
    }
    unsigned byte = 0;
    if (token.size() == 6 && sscanf(token.c_str(), "<0x%2X>", &byte) == 1 && byte < 256 &&
        token == fmt::format("<0x{:02X}>", byte)) {
      byte_ids_[byte] = static_cast<int32_t>(id);
    }
    if (token.empty()) continue;
    if (type == Type::kNormal) {
      least = std::min(least, scores_[id]);
      greatest_ = std::max(greatest_, scores_[id]);
    }
    if (type != Type::kNormal && type != Type::kUserDefined) continue;
    if (token.size() > kMaxTokenBytes) {
      fail(ErrorCode::kDataLoss, "{}: token {} has {} bytes; at most {}", spec.source, id,
           token.size(), kMaxTokenBytes);
    }
    if (type == Type::kUserDefined) user_bytes_[id] = static_cast<uint32_t>(token.size());
    int32_t& end = edges_[static_cast<size_t>(insert(token))].id;
    if (end < 0) end = static_cast<int32_t>(id);
  }
  unknown_score_ = (least == DBL_MAX ? 0 : least) - kUnknownPenalty;
  if (single_precision_) unknown_score_ = static_cast<float>(unknown_score_);
  byte_fallback_ = spec.byte_fallback &&
                   std::find(std::begin(byte_ids_), std::end(byte_ids_), -1) == std::end(byte_ids_);
  if (unknown_id_ < 0 && !byte_fallback_) {
    fail(ErrorCode::kDataLoss, "{}: a unigram model without an unknown token", spec.source);
  }
}

size_t Unigram::slot_of(uint64_t key) const {
  const size_t mask = edges_.size() - 1;
  size_t slot = mix_hash(key) & mask;
  while (edges_[slot].key != kNoKey && edges_[slot].key != key) slot = (slot + 1) & mask;
  return slot;
}

void Unigram::grow() {
  std::vector<Edge> old(edges_.size() * 2);
  old.swap(edges_);
  for (const Edge& edge : old) {
    if (edge.key != kNoKey) edges_[slot_of(edge.key)] = edge;
  }
}

// The slot of the edge that ends the token.
int32_t Unigram::insert(std::string_view token) {
  uint64_t node = 0;
  size_t slot = 0;
  for (const char byte : token) {
    if (edge_count_ * 3 > edges_.size()) grow();
    const uint64_t key = node << 8 | static_cast<uint8_t>(byte);
    slot = slot_of(key);
    if (edges_[slot].key == kNoKey) edges_[slot] = {key, static_cast<int32_t>(++edge_count_), -1};
    node = static_cast<uint64_t>(edges_[slot].node);
  }
  return static_cast<int32_t>(slot);
}

// best[i]: the best path from 0 to i. SentencePiece has the sums in float, Hugging Face's tokenizers
// in double: it decides where two paths are equal but for rounding.
void Unigram::search(std::string_view piece, std::vector<Scratch::Best>& best) const {
  best.assign(piece.size() + 1, {0, -1, -1});
  const auto offer = [&](size_t end, double score, size_t begin, int32_t id) {
    Scratch::Best& target = best[end];
    if (single_precision_) score = static_cast<float>(score);
    if (target.begin >= 0 && !(score > target.score)) return;
    target = {score, static_cast<int32_t>(begin), id};
  };
  for (size_t begin = 0; begin < piece.size();) {
    const double before = best[begin].score;
    const size_t length = utf8_step(piece.substr(begin)).length;
    bool whole = false;
    uint64_t node = 0;
    for (size_t end = begin; end < piece.size();) {
      const Edge& edge = edges_[slot_of(node << 8 | static_cast<uint8_t>(piece[end]))];
      if (edge.key == kNoKey) break;
      node = static_cast<uint64_t>(edge.node);
      ++end;
      if (edge.id < 0) continue;
      const uint32_t bytes = user_bytes_[edge.id];
      const double score = bytes > 0 ? bytes * greatest_ - 0.1 : scores_[edge.id];
      offer(end, score + before, begin, edge.id);
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
