#include "runtime/prefix_hash.h"

#include <bit>
#include <cstring>
#include <random>

namespace trireme {
namespace {

// The four words of SipHash's state. Blocks of a chain are hashed word by word, without a copy.
class SipState {
 public:
  explicit SipState(const std::array<uint64_t, 2>& key)
      : v0_(key[0] ^ 0x736f6d6570736575u),
        v1_(key[1] ^ 0x646f72616e646f6du ^ 0xee),
        v2_(key[0] ^ 0x6c7967656e657261u),
        v3_(key[1] ^ 0x7465646279746573u) {}

  void add(uint64_t word) {
    v3_ ^= word;
    round();
    round();
    v0_ ^= word;
  }
  PrefixHash finish() {
    v2_ ^= 0xee;
    for (int i = 0; i < 4; ++i) round();
    const uint64_t low = v0_ ^ v1_ ^ v2_ ^ v3_;
    v1_ ^= 0xdd;
    for (int i = 0; i < 4; ++i) round();
    return {low, v0_ ^ v1_ ^ v2_ ^ v3_};
  }

 private:
  void round() {
    v0_ += v1_;
    v1_ = std::rotl(v1_, 13) ^ v0_;
    v0_ = std::rotl(v0_, 32);
    v2_ += v3_;
    v3_ = std::rotl(v3_, 16) ^ v2_;
    v0_ += v3_;
    v3_ = std::rotl(v3_, 21) ^ v0_;
    v2_ += v1_;
    v1_ = std::rotl(v1_, 17) ^ v2_;
    v2_ = std::rotl(v2_, 32);
  }

  uint64_t v0_, v1_, v2_, v3_;
};

// Adds whole words and then the rest with the length of the message in the top byte, as SipHash
// ends every message.
void add_tail(SipState& state, std::span<const std::byte> message, size_t length) {
  size_t at = 0;
  for (; at + 8 <= message.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, message.data() + at, 8);
    state.add(word);
  }
  uint64_t last = static_cast<uint64_t>(length) << 56;
  for (size_t i = 0; at + i < message.size(); ++i) {
    last |= std::to_integer<uint64_t>(message[at + i]) << (8 * i);
  }
  state.add(last);
}

}  // namespace

PrefixHash siphash128(std::span<const std::byte> message, const std::array<uint64_t, 2>& key) {
  SipState state(key);
  add_tail(state, message, message.size());
  return state.finish();
}

PrefixHasher::PrefixHasher() {
  std::random_device device;
  for (uint64_t& word : key_) word = (uint64_t{device()} << 32) | device();
}

PrefixHash PrefixHasher::root(uint64_t salt) const {
  SipState state(key_);
  state.add(salt);
  add_tail(state, {}, sizeof(salt));
  return state.finish();
}

PrefixHash PrefixHasher::extend(const PrefixHash& parent, std::span<const int32_t> tokens) const {
  SipState state(key_);
  state.add(parent.low);
  state.add(parent.high);
  add_tail(state, std::as_bytes(tokens), sizeof(parent) + tokens.size_bytes());
  return state.finish();
}

}  // namespace trireme
