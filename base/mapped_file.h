// A read-only memory-mapped file.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace trireme {

class MappedFile {
 public:
  // Throws kNotFound (no such file, with errno's text) or kDataLoss (empty or not a regular file).
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Tells the kernel that these bytes were read for the last time. Never fails.
  void release(std::span<const std::byte> range) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace trireme
