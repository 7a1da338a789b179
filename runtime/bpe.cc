#include "runtime/bpe.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>

#include "base/error.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

constexpr size_t kFew = 48;  // up to here a scan for the best merge beats the heap

// code point -> byte for the byte-level alphabet, -1 where it has none.
constexpr size_t kAlphabetEnd = 0x144;
constexpr std::array<int16_t, kAlphabetEnd> make_alphabet() {
  std::array<int16_t, kAlphabetEnd> bytes{};
  bytes.fill(-1);
  size_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    bytes[itself ? static_cast<size_t>(byte) : next++] = static_cast<int16_t>(byte);
  }
  return bytes;
}
constexpr std::array<int16_t, kAlphabetEnd> kAlphabet = make_alphabet();

uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93u;
  return x ^ x >> 29;
}

// Of at most 24 bytes.
uint64_t hash_short(std::string_view bytes) {
  uint64_t words[3] = {};
  std::memcpy(words, bytes.data(), bytes.size());
  return mix(words[0] + mix(words[1] + mix(words[2] + bytes.size())));
}

}  // namespace

std::optional<std::string> bytes_of_token(std::string_view token) {
  std::string bytes;
  for (size_t i = 0; i < token.size();) {
    const Utf8Step step = utf8_step(token.substr(i));
    if (step.kind != Utf8Step::Kind::kWhole || step.code_point >= kAlphabetEnd) return std::nullopt;
    const int16_t byte = kAlphabet[step.code_point];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    i += step.length;
  }
  return bytes;
}

Bpe::Bpe(const TokenizerSpec& spec, const StringIds& ids)
    : unknown_id_(spec.unknown_id), fuse_unknown_(spec.fuse_unknown) {
  for (size_t point = 0; point < kAlphabetEnd; ++point) {
    if (kAlphabet[point] < 0) continue;
    std::string token;
    append_utf8(token, static_cast<char32_t>(point));
    const auto found = ids.find(token);
    byte_ids_[kAlphabet[point]] = found == ids.end() ? -1 : found->second;
  }
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
  if (!spec.ignore_merges) return;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (spec.tokens[id].empty()) continue;
    if (auto bytes = bytes_of_token(spec.tokens[id])) {
      whole_.emplace(std::move(*bytes), static_cast<int32_t>(id));
    }
  }
}

// A pair that comes twice has the later rank, as in Hugging Face's tokenizers.
void Bpe::add_merge(int32_t left, int32_t right, int32_t rank, int32_t id) {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  const size_t mask = merges_.size() - 1;
  size_t slot = mix(pair) & mask;
  while (merges_[slot].pair != kNoPair && merges_[slot].pair != pair) slot = (slot + 1) & mask;
  merges_[slot] = {pair, rank, id};
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  const size_t mask = merges_.size() - 1;
  for (size_t slot = mix(pair) & mask;; slot = (slot + 1) & mask) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    if (merges_[slot].pair == kNoPair) return nullptr;
  }
}

void Bpe::read_bytes(std::string_view piece, std::vector<int32_t>& ids) const {
  ids.clear();
  bool unknown_before = false;
  for (const char byte : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    if (id >= 0) {
      ids.push_back(id);
    } else if (unknown_id_ >= 0 && !(fuse_unknown_ && unknown_before)) {
      ids.push_back(unknown_id_);
    }
    unknown_before = id < 0;
  }
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const {
  if (!whole_.empty()) {
    if (const auto found = whole_.find(piece); found != whole_.end()) {
      out.push_back(found->second);
      return;
    }
  }
  Scratch::Entry* entry = nullptr;
  if (!piece.empty() && piece.size() <= Scratch::kMaxBytes) {
    entry = &scratch.cache_[hash_short(piece) & (Scratch::kCacheEntries - 1)];
    if (entry->length == piece.size() && !std::memcmp(entry->bytes, piece.data(), piece.size())) {
      out.insert(out.end(), entry->ids, entry->ids + entry->count);
      return;
    }
  }
  read_bytes(piece, scratch.ids_);
  if (scratch.ids_.size() <= kFew) {
    merge_few(scratch.ids_, scratch.ranks_);
  } else {
    merge_many(scratch);
  }
  const std::vector<int32_t>& ids = scratch.ids_;
  out.insert(out.end(), ids.begin(), ids.end());
  if (entry == nullptr || ids.size() > Scratch::kMaxIds) return;
  std::memcpy(entry->bytes, piece.data(), piece.size());
  entry->length = static_cast<uint8_t>(piece.size());
  std::copy(ids.begin(), ids.end(), entry->ids);
  entry->count = static_cast<int32_t>(ids.size());
}

void Bpe::merge_few(std::vector<int32_t>& ids, std::vector<int32_t>& ranks) const {
  constexpr int32_t kNone = INT32_MAX;
  const auto rank_at = [&](size_t i) {
    if (i + 1 >= ids.size()) return kNone;
    const Merge* merge = find_merge(ids[i], ids[i + 1]);
    return merge == nullptr ? kNone : merge->rank;
  };
  ranks.resize(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) ranks[i] = rank_at(i);
  while (ids.size() > 1) {
    const auto best = std::min_element(ranks.begin(), ranks.end());
    if (*best == kNone) return;
    const auto at = static_cast<size_t>(best - ranks.begin());
    ids[at] = find_merge(ids[at], ids[at + 1])->id;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(at) + 1);
    ranks.erase(ranks.begin() + static_cast<ptrdiff_t>(at) + 1);
    ranks[at] = rank_at(at);
    if (at > 0) ranks[at - 1] = rank_at(at - 1);
  }
}

// A heap entry whose rank is no longer its symbol's is stale and skipped.
void Bpe::merge_many(Scratch& scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols_;
  std::vector<uint64_t>& heap = scratch.heap_;
  const auto count = static_cast<int32_t>(scratch.ids_.size());
  symbols.resize(scratch.ids_.size());
  heap.clear();
  const auto entry_of = [&](int32_t at) {
    Scratch::Symbol& symbol = symbols[at];
    const Merge* merge = symbol.next < 0 ? nullptr : find_merge(symbol.id, symbols[symbol.next].id);
    symbol.rank = merge == nullptr ? -1 : merge->rank;
    return static_cast<uint64_t>(static_cast<uint32_t>(symbol.rank)) << 32 |
           static_cast<uint32_t>(at);
  };
  const auto push = [&](int32_t at) {
    const uint64_t entry = entry_of(at);
    if (symbols[at].rank < 0) return;
    heap.push_back(entry);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  for (int32_t i = 0; i < count; ++i) {
    symbols[i] = {scratch.ids_[i], i - 1, i + 1 < count ? i + 1 : -1, -1};
  }
  for (int32_t i = 0; i < count; ++i) {
    const uint64_t entry = entry_of(i);
    if (symbols[i].rank >= 0) heap.push_back(entry);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const uint64_t top = heap.back();
    heap.pop_back();
    const auto at = static_cast<int32_t>(static_cast<uint32_t>(top));
    Scratch::Symbol& left = symbols[at];
    if (left.id < 0 || left.rank != static_cast<int32_t>(top >> 32)) continue;
    Scratch::Symbol& right = symbols[left.next];
    left.id = find_merge(left.id, right.id)->id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].prev = at;
    push(at);
    if (left.prev >= 0) push(left.prev);
  }
  scratch.ids_.clear();
  for (int32_t i = 0; i >= 0 && i < count; i = symbols[i].next) {
    scratch.ids_.push_back(symbols[i].id);
  }
}

}  // namespace trireme
