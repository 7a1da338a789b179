// The fields of a protobuf message, one by one: enough to read a SentencePiece model without its
// generated classes.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

namespace trireme {

class ProtobufFields {
 public:
  explicit ProtobufFields(std::string_view message) : rest_(message) {}

  struct Field {
    uint32_t number = 0;
    uint64_t value = 0;      // of a varint or fixed field
    std::string_view bytes;  // of a length-delimited field
    float as_float() const {
      const auto bits = static_cast<uint32_t>(value);
      float out = 0;
      std::memcpy(&out, &bits, sizeof out);
      return out;
    }
  };

  // The next field; nullopt at the end or where the message is broken (see broken()).
  std::optional<Field> next() {
    if (rest_.empty() || broken_) return std::nullopt;
    Field field;
    const uint64_t tag = varint();
    field.number = static_cast<uint32_t>(tag >> 3);
    if (tag >> 3 == 0 || tag >> 32 != 0) broken_ = true;
    switch (tag & 7) {
      case 0: field.value = varint(); break;
      case 1: field.value = fixed(8); break;
      case 2: field.bytes = take(varint()); break;
      case 5: field.value = fixed(4); break;
      default: broken_ = true;
    }
    if (broken_) return std::nullopt;
    return field;
  }
  bool broken() const { return broken_; }

 private:
  std::string_view take(uint64_t length) {
    if (length > rest_.size()) broken_ = true;
    if (broken_) return {};
    const std::string_view bytes = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return bytes;
  }
  uint64_t fixed(size_t length) {
    uint64_t value = 0;  // little-endian, as this host is
    const std::string_view bytes = take(length);
    if (!broken_) std::memcpy(&value, bytes.data(), length);
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const std::string_view byte = take(1);
      if (broken_) return 0;
      value |= static_cast<uint64_t>(byte[0] & 0x7F) << shift;
      if ((byte[0] & 0x80) == 0) return value;
    }
    broken_ = true;
    return 0;
  }

  std::string_view rest_;
  bool broken_ = false;
};

}  // namespace trireme
