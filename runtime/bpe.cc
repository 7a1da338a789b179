#include "runtime/bpe.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>

#include "base/error.h"
#include "runtime/bpe_hash.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

constexpr size_t kFew = 48;  // up to here a scan for the best merge beats the buckets

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

// Of at most 24 bytes.
uint64_t hash_short(std::string_view bytes) {
  uint64_t words[3] = {};
  std::memcpy(words, bytes.data(), bytes.size());
  return mix_hash(words[0] + mix_hash(words[1] + mix_hash(words[2] + bytes.size())));
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

std::string token_of_byte(uint8_t byte) {
  std::string token;
  const auto* at = std::find(kAlphabet.begin(), kAlphabet.end(), int16_t{byte});
  append_utf8(token, static_cast<char32_t>(at - kAlphabet.begin()));
  return token;
}

// A pair that comes twice has the later rank, as in Hugging Face's tokenizers.
void Bpe::add_merge(int32_t left, int32_t right, int32_t rank, int32_t id) {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  const size_t mask = merges_.size() - 1;
  size_t slot = mix_hash(pair) & mask;
  while (merges_[slot].pair != kNoPair && merges_[slot].pair != pair) slot = (slot + 1) & mask;
  merges_[slot] = {pair, rank, id};
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  const size_t mask = merges_.size() - 1;
  for (size_t slot = mix_hash(pair) & mask;; slot = (slot + 1) & mask) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    if (merges_[slot].pair == kNoPair) return nullptr;
  }
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const {
  if (!whole_.empty()) {
    if (const auto found = whole_.find(piece); found != whole_.end()) {
      out.push_back(found->second);
      return;
    }
  }
  while (!piece.empty()) {
    const size_t length = cut(piece);
    encode_part(piece.substr(0, length), scratch, out);
    piece.remove_prefix(length);
  }
}

void Bpe::encode_part(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const {
  Scratch::Entry* entry = nullptr;
  if (!piece.empty() && piece.size() <= Scratch::kMaxBytes) {
    entry = &scratch.cache_[hash_short(piece) & (Scratch::kCacheEntries - 1)];
    if (entry->length == piece.size() && !std::memcmp(entry->bytes, piece.data(), piece.size())) {
      out.insert(out.end(), entry->ids, entry->ids + entry->count);
      return;
    }
  }
  if (bytewise_) {
    read_bytes(piece, scratch.ids_);
  } else {
    read_characters(piece, scratch.ids_);
  }
  if (scratch.ids_.size() <= kFew) {
    merge_few(scratch.ids_, scratch.ranks_);
  } else {
    merge_many(scratch);
  }
  settle(scratch.ids_);
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

// Puts `at` into the bucket of its symbol's merge with the next one.
void Bpe::await(Scratch& scratch, int32_t at) const {
  Scratch::Symbol& symbol = scratch.symbols_[at];
  const Merge* merge =
      symbol.next < 0 ? nullptr : find_merge(symbol.id, scratch.symbols_[symbol.next].id);
  symbol.rank = merge == nullptr ? -1 : merge->rank;
  if (merge == nullptr) return;
  int32_t& bucket = scratch.bucket_of_[merge->rank];
  if (bucket < 0) {
    if (scratch.free_buckets_.empty()) {
      scratch.free_buckets_.push_back(static_cast<int32_t>(scratch.buckets_.size()));
      scratch.buckets_.emplace_back();
    }
    bucket = scratch.free_buckets_.back();
    scratch.free_buckets_.pop_back();
    scratch.waiting_.push_back(merge->rank);
    std::push_heap(scratch.waiting_.begin(), scratch.waiting_.end(), std::greater<>());
  }
  Scratch::Bucket& into = scratch.buckets_[bucket];
  if (into.places.empty() || into.places.back() <= at) {
    into.places.push_back(at);
  } else {
    into.late.push_back(at);
    std::push_heap(into.late.begin(), into.late.end(), std::greater<>());
  }
}

// Takes the leftmost place; -1: none is left.
int32_t Bpe::next_place(Scratch::Bucket& bucket) {
  const bool ordered = bucket.done < bucket.places.size();
  if (ordered && (bucket.late.empty() || bucket.places[bucket.done] <= bucket.late.front())) {
    return bucket.places[bucket.done++];
  }
  if (bucket.late.empty()) return -1;
  std::pop_heap(bucket.late.begin(), bucket.late.end(), std::greater<>());
  const int32_t place = bucket.late.back();
  bucket.late.pop_back();
  return place;
}

// Merges at the places of one rank from left to right, as long as no better rank waits. A place
// whose symbol has another rank by now is passed over.
void Bpe::run_bucket(Scratch& scratch, int32_t rank) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols_;
  const int32_t index = scratch.bucket_of_[rank];
  while (true) {
    const int32_t at = next_place(scratch.buckets_[index]);  // by index: await() may add buckets
    if (at < 0) break;
    Scratch::Symbol& left = symbols[at];
    if (left.id < 0 || left.rank != rank) continue;
    Scratch::Symbol& right = symbols[left.next];
    left.id = find_merge(left.id, right.id)->id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].prev = at;
    if (left.prev >= 0) await(scratch, left.prev);
    await(scratch, at);
    if (scratch.waiting_.front() < rank) return;
  }
  Scratch::Bucket& bucket = scratch.buckets_[index];
  bucket.places.clear();
  bucket.done = 0;
  scratch.free_buckets_.push_back(index);
  scratch.bucket_of_[rank] = -1;
  std::pop_heap(scratch.waiting_.begin(), scratch.waiting_.end(), std::greater<>());
  scratch.waiting_.pop_back();
}

// A bucket for each rank that is possible somewhere, the least rank first.
void Bpe::merge_many(Scratch& scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols_;
  const auto count = static_cast<int32_t>(scratch.ids_.size());
  scratch.bucket_of_.resize(static_cast<size_t>(rank_count_), -1);
  symbols.resize(scratch.ids_.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[i] = {scratch.ids_[i], i - 1, i + 1 < count ? i + 1 : -1, -1};
  }
  for (int32_t i = 0; i < count; ++i) await(scratch, i);
  while (!scratch.waiting_.empty()) run_bucket(scratch, scratch.waiting_.front());
  scratch.ids_.clear();
  for (int32_t i = 0; i >= 0 && i < count; i = symbols[i].next) {
    scratch.ids_.push_back(symbols[i].id);
  }
}

}  // namespace trireme
