// Owned memory of the host or, made by a backend, of its device.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

namespace trireme {

// Move-only. part() shares the ownership: the memory is freed with the last of them.
class Buffer {
 public:
  Buffer() = default;
  // `bytes` of uninitialized host memory, aligned to 64 bytes (2 MiB and transparent huge pages
  // from 4 MiB on), untouched so that the first writer decides the NUMA node. Throws
  // kResourceExhausted.
  explicit Buffer(size_t bytes);
  // Memory of any kind: `owner` frees it.
  Buffer(std::byte* data, size_t bytes, std::shared_ptr<void> owner)
      : data_(data), size_(bytes), owner_(std::move(owner)) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() = default;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  // `bytes` from `offset` on.
  Buffer part(size_t offset, size_t bytes) const { return {data_ + offset, bytes, owner_}; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    owner_.swap(other.owner_);
  }

  std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::shared_ptr<void> owner_;
};

}  // namespace trireme
