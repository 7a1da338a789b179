// Ranks under mpirun that map each other's device memory. Free of fmt, for .cu files.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cuda/peer_lanes.h"

namespace trireme {

class PeerWorld {
 public:
  virtual ~PeerWorld() = default;
  virtual cuda::PeerLanes lanes(int64_t row_bytes) const = 0;
  virtual bool shares_gpus() const = 0;  // there are more ranks than GPUs
  virtual uint64_t seed() const = 0;     // fresh in every run, the same on all ranks
  // The largest of all ranks' results, on all ranks.
  virtual int agree(int result) = 0;
};

// Null, saying so, without a GPU or where the GPUs cannot map each other's memory.
std::unique_ptr<PeerWorld> make_peer_world(int& argc, char**& argv, int64_t row_bytes);

}  // namespace trireme
