// The memory account of a start: what every rank needs, what every host has, and how many KV blocks
// all ranks can agree on. Made before anything is loaded; on GPUs again when weights are loaded and
// the largest steps have run, with what is then free.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "parallel/communicator.h"

namespace trireme {

// What one rank needs. Block counts are the same on all ranks; block sizes are not.
struct MemoryNeeds {
  int64_t weights = 0;
  int64_t scratch = 0;
  std::vector<int64_t> block_bytes;    // per KV group
  std::vector<int32_t> wanted_blocks;  // per KV group: no more are ever used
  std::vector<int32_t> least_blocks;   // per KV group: with fewer the model cannot be served
  int64_t kv_memory = 0;               // bytes per rank; 0: a share of what is left
  std::optional<DeviceMemory> device;  // of this rank's GPU, where the above lies on one
  int64_t taken = 0;    // of weights and scratch: allocated already, not in device->free
  int64_t reserve = 0;  // of device->free: not for any of the above
  std::string advice;   // for the message when it does not fit
};

// Collective; every rank gets the same answer: blocks per KV group. Throws kResourceExhausted on
// every rank if a host or a process has too little, saying what is needed, there and missing.
std::vector<int32_t> agree_on_kv_blocks(Communicator& control, const MemoryNeeds& needs);

// What a rank holds once it is ready.
struct RankMemory {
  int64_t weights = 0;
  int64_t workspace = 0;
  int64_t kv = 0;
  int64_t device_free = -1;  // on a GPU: what is left
};

// Collective: rank 0 logs what each rank holds.
void report_memory(Communicator& control, const RankMemory& mine);

}  // namespace trireme
