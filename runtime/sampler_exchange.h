// One message per rank to all ranks: put values, gather, read each rank's values in the same order.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "parallel/communicator.h"

namespace trireme {

// Every rank must put the same number of bytes.
class Exchange {
 public:
  void clear() { mine_.clear(); }

  template <typename T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const size_t end = mine_.size();
    mine_.resize(end + sizeof(T));
    std::memcpy(mine_.data() + end, &value, sizeof(T));
  }

  template <typename T>
  void put_all(const std::vector<T>& values) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    mine_.insert(mine_.end(), bytes, bytes + values.size() * sizeof(T));
  }

  void gather(Communicator& group) {
    stride_ = mine_.size();
    cursors_.assign(static_cast<size_t>(group.size()), 0);
    if (mine_.empty()) return;
    if (group.size() == 1) return all_.swap(mine_);
    all_.resize(stride_ * static_cast<size_t>(group.size()));
    group.all_gather(mine_, all_);
  }

  // The next value of `rank`.
  template <typename T>
  T take(int rank) {
    size_t& cursor = cursors_[static_cast<size_t>(rank)];
    T value;
    std::memcpy(&value, all_.data() + static_cast<size_t>(rank) * stride_ + cursor, sizeof(T));
    cursor += sizeof(T);
    return value;
  }

  // The next `count` values of `rank`, behind those of `to`.
  template <typename T>
  void take_all(int rank, size_t count, std::vector<T>& to) {
    size_t& cursor = cursors_[static_cast<size_t>(rank)];
    const size_t end = to.size();
    to.resize(end + count);
    if (count == 0) return;
    std::memcpy(to.data() + end, all_.data() + static_cast<size_t>(rank) * stride_ + cursor,
                count * sizeof(T));
    cursor += count * sizeof(T);
  }

 private:
  std::vector<std::byte> mine_;
  std::vector<std::byte> all_;
  size_t stride_ = 0;  // bytes a rank
  std::vector<size_t> cursors_;
};

}  // namespace trireme
