// Device memory that the ranks of one host map from each other (CUDA IPC). Included by
// parallel/nccl*.cc and tests alone.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/peer_buffers.h"
#include "parallel/communicator.h"

namespace trireme {

// A word in page-locked memory that kernels look at while they wait for peers.
class StopFlag {
 public:
  StopFlag();
  ~StopFlag();
  StopFlag(const StopFlag&) = delete;
  StopFlag& operator=(const StopFlag&) = delete;
  void raise() { *static_cast<volatile uint32_t*>(word_) = 1; }
  uint32_t* word() const { return word_; }

 private:
  uint32_t* word_ = nullptr;
};

// Collective over `host`, the ranks that share the memory; `device` is this rank's GPU, and several
// ranks may have the same. Nothing where they are on several hosts, more than
// PeerBuffers::kMostRanks, or their GPUs cannot map each other's memory: on all ranks alike, and
// `why` says so.
std::optional<PeerBuffers> map_peer_memory(Communicator& host, int device, size_t bytes,
                                           std::shared_ptr<StopFlag> stop, std::string& why);

}  // namespace trireme
