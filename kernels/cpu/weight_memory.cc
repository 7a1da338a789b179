#include "kernels/cpu/weight_memory.h"

#include <algorithm>

namespace trireme::cpu {
namespace {
constexpr size_t kChunkBytes = size_t{64} << 20;
// From here on a buffer of its own is on huge pages, and little of the last one stays empty.
constexpr size_t kLargeBytes = size_t{4} << 20;
// Below this a weight has a buffer of its own: it costs little, and a sanitizer sees its ends.
constexpr size_t kSmallBytes = size_t{64} << 10;
constexpr size_t kAlignment = 64;
}  // namespace

Buffer WeightMemory::take(size_t bytes) {
  if (bytes < kSmallBytes || bytes >= kLargeBytes) return Buffer(bytes);
  if (rest_.size() < bytes) rest_ = Buffer(kChunkBytes);
  Buffer taken = rest_.part(0, bytes);
  const size_t next = std::min((bytes + kAlignment - 1) / kAlignment * kAlignment, rest_.size());
  rest_ = rest_.part(next, rest_.size() - next);
  return taken;
}

}  // namespace trireme::cpu
