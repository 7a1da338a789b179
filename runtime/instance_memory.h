// The memory account of a start: what every rank needs, what every host has, and how many KV blocks
// all ranks can agree on. Made before anything is loaded.
#pragma once

#include <cstdint>
#include <functional>
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
  bool measured = false;               // all but the KV cache is there and has taken what it takes
  std::function<std::string()> advice;  // for the message when a GPU has too little; may be empty
};

// Of what is free, what may be planned with; `measured` as in MemoryNeeds.
int64_t room_on_device(const DeviceMemory& device, bool measured);

// Weights, scratch and the KV cache that there must be for sure.
int64_t required_bytes(const MemoryNeeds& needs);

// Collective; every rank gets the same answer: blocks per KV group. Throws kResourceExhausted on
// every rank if a host or a process has too little, saying what is needed, there and missing.
std::vector<int32_t> agree_on_kv_blocks(Communicator& control, const MemoryNeeds& needs);

}  // namespace trireme
