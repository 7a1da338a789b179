// What Bpe knows of a vocabulary, and how a text becomes the symbols that it merges.
#include <algorithm>
#include <bit>

#include "base/error.h"
#include "runtime/bpe.h"
#include "runtime/bpe_hash.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

constexpr char32_t kLow = 0x10000;
constexpr size_t kPairBits = size_t{1} << 22;
constexpr size_t kUncut = 24;  // shorter parts are not worth a cut

using Type = TokenizerSpec::Type;

// Whether merges may make the token.
bool is_made(const TokenizerSpec& spec, size_t id) {
  return !spec.tokens[id].empty() && (spec.types.empty() || spec.types[id] == Type::kNormal);
}

uint64_t pair_of(char32_t left, char32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

// The bytes of each symbol that a token begins as: bytes' alphabet and code points alike are UTF-8.
std::vector<std::string_view> characters_of(std::string_view token) {
  std::vector<std::string_view> out;
  for (size_t i = 0; i < token.size();) {
    out.push_back(token.substr(i, utf8_step(token.substr(i)).length));
    i += out.back().size();
  }
  return out;
}

}  // namespace

Bpe::Bpe(const TokenizerSpec& spec, const StringIds& ids)
    : bytewise_(spec.model == TokenizerSpec::Model::kByteBpe),
      unknown_id_(spec.unknown_id),
      fuse_unknown_(spec.fuse_unknown),
      first_part_(static_cast<int32_t>(spec.tokens.size())) {
  read_alphabet(ids);
  byte_fallback_ = spec.byte_fallback &&
                   std::none_of(std::begin(byte_ids_), std::end(byte_ids_), [](int32_t id) {
                     return id < 0;
                   });
  if (!bytewise_) {
    symbols_low_.assign(kLow, -1);
    for (const auto& [token, id] : ids) {
      const Utf8Step step = utf8_step(token);
      if (step.length != token.size() || !(spec.types.empty() || is_made(spec, id))) continue;
      if (step.code_point < kLow) {
        symbols_low_[step.code_point] = id;
      } else {
        symbols_high_.emplace(step.code_point, id);
      }
    }
  }
  if (spec.merge_ranks.empty()) {
    read_listed(spec, ids);
  } else {
    read_implied(spec, ids);
  }
  if (!bytewise_) note_pairs(spec);
  if (!spec.ignore_merges) return;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (!is_made(spec, id)) continue;
    if (!bytewise_) {
      whole_.emplace(spec.tokens[id], static_cast<int32_t>(id));
    } else if (auto bytes = bytes_of_token(spec.tokens[id])) {
      whole_.emplace(std::move(*bytes), static_cast<int32_t>(id));
    }
  }
}

void Bpe::read_alphabet(const StringIds& ids) {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string token =
        bytewise_ ? token_of_byte(static_cast<uint8_t>(byte)) : fmt::format("<0x{:02X}>", byte);
    const auto found = ids.find(token);
    byte_ids_[byte] = found == ids.end() ? -1 : found->second;
  }
}

void Bpe::read_listed(const TokenizerSpec& spec, const StringIds& ids) {
  rank_count_ = static_cast<int32_t>(spec.merges.size());
  merges_.resize(std::bit_ceil(spec.merges.size() * 2 + 2));
  const auto id_of = [&](size_t rank, const std::string& token) {
    const auto found = ids.find(token);
    if (found == ids.end()) {
      fail(ErrorCode::kDataLoss, "{}: merges[{}] names '{}', which is not in the vocabulary",
           spec.source, rank, token);
    }
    return found->second;
  };
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto& [left, right] = spec.merges[rank];
    const int32_t left_id = id_of(rank, left);
    const int32_t right_id = id_of(rank, right);
    add_merge(left_id, right_id, static_cast<int32_t>(rank), id_of(rank, left + right));
  }
}

void Bpe::read_implied(const TokenizerSpec& spec, const StringIds& ids) {
  struct Found {
    int32_t left, right, rank, id;
  };
  std::vector<Found> found;
  std::unordered_map<std::string_view, int32_t> parts;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (!is_made(spec, id) || spec.merge_ranks[id] < 0) continue;
    const std::string_view token = spec.tokens[id];
    const std::vector<std::string_view> characters = characters_of(token);
    const auto symbol = [&](std::string_view text, bool single) -> int32_t {
      const auto at = ids.find(text);
      if (at != ids.end() && is_made(spec, at->second)) return at->second;
      if (!single || bytewise_) return -1;
      const auto [part, fresh] =
          parts.emplace(text, first_part_ + static_cast<int32_t>(parts_.size()));
      if (fresh) {
        parts_.emplace_back(text);
        const char32_t point = utf8_step(text).code_point;
        if (point < kLow) {
          symbols_low_[point] = part->second;
        } else {
          symbols_high_.emplace(point, part->second);
        }
      }
      return part->second;
    };
    size_t at = 0;
    for (size_t i = 1; i < characters.size(); ++i) {
      at += characters[i - 1].size();
      const int32_t left = symbol(token.substr(0, at), i == 1);
      const int32_t right = symbol(token.substr(at), i + 1 == characters.size());
      if (left < 0 || right < 0) continue;
      found.push_back({left, right, spec.merge_ranks[id], static_cast<int32_t>(id)});
    }
    rank_count_ = std::max(rank_count_, spec.merge_ranks[id] + 1);
  }
  if (rank_count_ > 4 * first_part_ + (1 << 20)) {
    fail(ErrorCode::kDataLoss, "{}: a rank of {} among {} tokens", spec.source, rank_count_ - 1,
         first_part_);
  }
  merges_.resize(std::bit_ceil(found.size() * 2 + 2));
  for (const Found& merge : found) add_merge(merge.left, merge.right, merge.rank, merge.id);
}

void Bpe::note_pairs(const TokenizerSpec& spec) {
  pairs_.resize(kPairBits / 64);
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (!is_made(spec, id)) continue;
    const std::string_view token = spec.tokens[id];
    char32_t before = 0;
    for (size_t i = 0; i < token.size();) {
      const Utf8Step step = utf8_step(token.substr(i));
      const uint64_t bit = mix_hash(pair_of(before, step.code_point)) & (kPairBits - 1);
      if (i > 0) pairs_[bit / 64] |= uint64_t{1} << bit % 64;
      before = step.code_point;
      i += step.length;
    }
  }
}

int32_t Bpe::symbol_of(char32_t code_point) const {
  if (code_point < kLow) return symbols_low_[code_point];
  const auto found = symbols_high_.find(code_point);
  return found == symbols_high_.end() ? -1 : found->second;
}

// False only if no token holds the two as neighbours. What is unknown may be fused.
bool Bpe::may_join(char32_t left, char32_t right) const {
  const uint64_t bit = mix_hash(pair_of(left, right)) & (kPairBits - 1);
  if (pairs_[bit / 64] >> bit % 64 & 1) return true;
  const auto unknown = [&](char32_t point) {
    const int32_t symbol = symbol_of(point);
    return symbol < 0 || symbol >= first_part_ || symbol == unknown_id_;
  };
  return !byte_fallback_ && fuse_unknown_ && unknown(left) && unknown(right);
}

// Bytes of the part of `piece` that can be encoded without looking at the rest.
size_t Bpe::cut(std::string_view piece) const {
  if (bytewise_ || piece.size() <= kUncut) return piece.size();
  Utf8Step before = utf8_step(piece);
  for (size_t i = before.length; i < piece.size();) {
    const Utf8Step step = utf8_step(piece.substr(i));
    if (!may_join(before.code_point, step.code_point)) return i;
    i += step.length;
    before = step;
  }
  return piece.size();
}

void Bpe::put_unknown(std::string_view character, std::vector<int32_t>& ids,
                      bool& unknown_before) const {
  if (byte_fallback_) {
    for (const char byte : character) ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
    return;
  }
  if (unknown_id_ >= 0 && !(fuse_unknown_ && unknown_before)) ids.push_back(unknown_id_);
  unknown_before = true;
}

void Bpe::read_bytes(std::string_view piece, std::vector<int32_t>& ids) const {
  ids.clear();
  bool unknown_before = false;
  for (const char byte : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    if (id >= 0) {
      ids.push_back(id);
      unknown_before = false;
    } else {
      put_unknown({}, ids, unknown_before);
    }
  }
}

void Bpe::read_characters(std::string_view piece, std::vector<int32_t>& ids) const {
  ids.clear();
  bool unknown_before = false;
  for (size_t i = 0; i < piece.size();) {
    const Utf8Step step = utf8_step(piece.substr(i));
    const int32_t id = symbol_of(step.code_point);
    if (id >= 0) {
      ids.push_back(id);
      unknown_before = false;
    } else {
      put_unknown(piece.substr(i, step.length), ids, unknown_before);
    }
    i += step.length;
  }
}

// After merging: parts that stayed alone become bytes or unknown.
void Bpe::settle(std::vector<int32_t>& ids) const {
  if (std::none_of(ids.begin(), ids.end(), [&](int32_t id) { return id >= first_part_; })) return;
  std::vector<int32_t> out;
  bool unknown_before = false;
  for (const int32_t id : ids) {
    if (id >= first_part_) {
      put_unknown(parts_[static_cast<size_t>(id - first_part_)], out, unknown_before);
    } else if (id != unknown_id_ || !(fuse_unknown_ && unknown_before)) {
      out.push_back(id);
      unknown_before = id == unknown_id_;
    }
  }
  ids.swap(out);
}

}  // namespace trireme
