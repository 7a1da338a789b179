// Owned host memory, 64-byte aligned. Device memory gets the same shape of type in base/ later.
#pragma once

#include <cstddef>
#include <memory>

namespace trireme {

class Buffer {
 public:
  Buffer() = default;
  // `bytes` of uninitialized memory, aligned to 64 bytes (2 MiB and transparent huge pages from
  // 4 MiB on), untouched so that the first writer decides the NUMA node. Throws kResourceExhausted.
  explicit Buffer(size_t bytes);

  std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* pointer) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};

}  // namespace trireme
