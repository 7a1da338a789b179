// Where packed weights lie.
#pragma once

#include <cstddef>

#include "base/buffer.h"

namespace trireme::cpu {

// Cuts weights, in the order of loading, from chunks on huge pages. With a buffer each, those of
// less than two huge pages would take a page fault for every 4 KiB.
class WeightMemory {
 public:
  // `bytes` of untouched memory, aligned to 64 bytes. Their chunk is freed with the last of its
  // parts. Throws kResourceExhausted.
  Buffer take(size_t bytes);

 private:
  Buffer rest_;  // of the last chunk
};

}  // namespace trireme::cpu
