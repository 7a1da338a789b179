// Memory on the devices of a group of ranks that all of them write to: `parallel` makes it,
// `kernels` use it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace trireme {

struct PeerBuffers {
  static constexpr int kMostRanks = 8;

  int rank = 0;
  int size = 1;
  size_t bytes = 0;                           // of each rank's buffer; zeroed when it was made
  std::array<std::byte*, kMostRanks> data{};  // rank r's buffer, at this device's addresses
  // Host memory that the device reads: not 0 once waiting for peers must end, whatever comes of it.
  uint32_t* stop = nullptr;
  std::shared_ptr<void> owner;
};

}  // namespace trireme
