#include "runtime/plan_hash.h"

#include <cstring>

namespace trireme {
namespace {

constexpr uint64_t kFirst = 0x9e3779b97f4a7c15, kSecond = 0xd1342543de82ef95;

uint64_t fold(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

uint64_t hash_bytes(std::span<const std::byte> bytes, uint64_t seed) {
  uint64_t hash = fold(seed ^ kFirst, kSecond ^ bytes.size());
  while (!bytes.empty()) {
    uint64_t word = 0;
    const size_t count = bytes.size() < sizeof word ? bytes.size() : sizeof word;
    std::memcpy(&word, bytes.data(), count);
    // The sum keeps a product with 0 from forgetting what came before.
    hash = fold(hash ^ word, kFirst) + (hash ^ kSecond);
    bytes = bytes.subspan(count);
  }
  hash = fold(hash ^ kSecond, kFirst);
  return hash == 0 ? 1 : hash;
}

uint64_t plan_seed(std::string_view layout) {
  return hash_bytes(std::as_bytes(std::span(layout.data(), layout.size())), 0);
}

}  // namespace trireme
