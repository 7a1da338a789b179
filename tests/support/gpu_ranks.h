// Several ranks of one process on one GPU, each with a backend and stream of its own, that write to
// each other's memory: what ranks of several GPUs do, where a test has only one.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/cuda_module.h"

namespace trireme {

// All blocks of all ranks must fit onto the GPU at a time, or they wait for each other for ever:
// few rows.
class GpuRanks {
 public:
  // For rows of up to `width` activations.
  GpuRanks(int ranks, int64_t width, DType element = DType::kBF16) {
    for (int rank = 0; rank < ranks; ++rank) {
      backends_.push_back(make_cuda_backend(pool_, 0, element));
    }
    const size_t bytes = backends_[0]->peer_bytes(ranks, width);
    const std::vector<float> zeros(bytes / sizeof(float) + 16);
    PeerBuffers peers;
    peers.size = ranks;
    peers.bytes = bytes;
    for (int rank = 0; rank < ranks; ++rank) {
      memory_.push_back(backends_[static_cast<size_t>(rank)]->upload(zeros));
      peers.data[static_cast<size_t>(rank)] = memory_.back().data();
    }
    stop_ = backends_[0]->upload(std::vector<float>(16));
    peers.stop = stop_.as<uint32_t>();
    for (int rank = 0; rank < ranks; ++rank) {
      peers.rank = rank;
      sums_.push_back(backends_[static_cast<size_t>(rank)]->make_peer_sums(peers, width));
    }
  }

  // From now on who waits for a peer ends soon, with whatever it has.
  void end_waiting() {
    fill(0, stop_, 16, 1);
    backends_[0]->synchronize();
  }
  // The ranks' exchanges count from 0 again; what was sent lies there yet. `bytes` of counters.
  void count_again(size_t bytes) {
    for (size_t rank = 0; rank < backends_.size(); ++rank) {
      fill(rank, memory_[rank], static_cast<int64_t>(bytes / sizeof(float)), 0);
      backends_[rank]->synchronize();
    }
  }

  Backend& backend(size_t rank) { return *backends_[rank]; }
  PeerSums& sums(size_t rank) { return *sums_[rank]; }
  size_t size() const { return backends_.size(); }

 private:
  void fill(size_t rank, const Buffer& buffer, int64_t count, uint8_t value) {
    backends_[rank]->fill_bytes({buffer.data(), DType::kF32, 1, count, count}, value);
  }

  ThreadPool pool_{1};
  std::vector<std::unique_ptr<Backend>> backends_;
  std::vector<Buffer> memory_;
  Buffer stop_;
  std::vector<std::unique_ptr<PeerSums>> sums_;
};

}  // namespace trireme
