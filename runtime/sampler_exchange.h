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

  void gather(Communicator& group) {
    all_.resize(mine_.size() * static_cast<size_t>(group.size()));
    if (mine_.empty()) return;
    if (group.size() == 1) {
      all_ = mine_;
    } else {
      group.all_gather(mine_, all_);
    }
    cursors_.assign(static_cast<size_t>(group.size()), 0);
  }

  // The next value of `rank`.
  template <typename T>
  T take(int rank) {
    size_t& cursor = cursors_[static_cast<size_t>(rank)];
    T value;
    std::memcpy(&value, all_.data() + static_cast<size_t>(rank) * mine_.size() + cursor, sizeof(T));
    cursor += sizeof(T);
    return value;
  }

 private:
  std::vector<std::byte> mine_;
  std::vector<std::byte> all_;
  std::vector<size_t> cursors_;
};

}  // namespace trireme
