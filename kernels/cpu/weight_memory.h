// Where packed weights lie.
#pragma once

#include <cstddef>

#include "base/buffer.h"

namespace trireme::cpu {

// Cuts weights of 64 KiB to 4 MiB, in the order of loading, from chunks on huge pages: with a
// buffer each they would take a page fault for every 4 KiB. Threads that pack such a weight
// together share its pages, so that on several NUMA nodes some lie on another's.
class WeightMemory {
 public:
  // `bytes` of untouched memory, aligned to 64 bytes. Their chunk is freed with the last of its
  // parts. Throws kResourceExhausted.
  Buffer take(size_t bytes);

 private:
  Buffer rest_;  // of the last chunk
};

}  // namespace trireme::cpu
