// Hashes and the byte alphabet of byte-pair encoding.
#pragma once

#include <cstdint>
#include <string>

namespace trireme {

inline uint64_t mix_hash(uint64_t x) {
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93u;
  return x ^ x >> 29;
}

// How the byte-level alphabet spells a byte.
std::string token_of_byte(uint8_t byte);

}  // namespace trireme
