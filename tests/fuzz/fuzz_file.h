// What the targets share: what counts as a finding, and bytes whose bounds are seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace trireme::fuzz {

// Errors are answers; anything else is a finding.
template <typename Body>
int run(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInternal) std::abort();
  }
  return 0;
}

// A copy of exactly its size, so that a sanitizer sees the first byte read beyond.
class Copy {
 public:
  explicit Copy(std::string_view bytes)
      : size_(bytes.size()), bytes_(std::make_unique<std::byte[]>(bytes.size())) {
    std::memcpy(bytes_.get(), bytes.data(), size_);
  }
  std::span<const std::byte> bytes() const { return {bytes_.get(), size_}; }

 private:
  size_t size_;
  std::unique_ptr<std::byte[]> bytes_;
};

// Aborts unless `part` lies in `whole`.
inline void expect_within(std::span<const std::byte> part, std::span<const std::byte> whole) {
  if (part.empty()) return;
  const auto begin = reinterpret_cast<uintptr_t>(whole.data());
  const auto at = reinterpret_cast<uintptr_t>(part.data());
  if (at < begin || at - begin > whole.size() || part.size() > whole.size() - (at - begin)) {
    std::abort();
  }
}

}  // namespace trireme::fuzz
