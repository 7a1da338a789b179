// Tests that want a GPU of its own for each rank.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "kernels/cuda_module.h"
#include "parallel/world.h"

namespace trireme {

// Collective: the same answer on all ranks, so that none waits for one that was skipped. Rank 0
// says why not.
inline bool every_rank_has_a_gpu(const MpiEnvironment& environment) {
  const auto control = environment.make_control();
  const uint8_t mine = cuda_device_count() > environment.local_rank() ? 1 : 0;
  std::vector<uint8_t> all(static_cast<size_t>(environment.size()));
  control->all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  if (std::find(all.begin(), all.end(), 0) == all.end()) return true;
  if (environment.rank() == 0) {
    std::printf("skipped: %s\n",
                cuda_device_count() == 0 ? cuda_unavailable().c_str() : "fewer GPUs than ranks");
  }
  return false;
}

}  // namespace trireme
