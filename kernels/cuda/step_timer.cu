#include <cstdint>

#include "kernels/cuda/check.h"
#include "kernels/cuda/step_timer.h"

namespace trireme::cuda {
namespace {

__device__ inline uint64_t global_timer() {
  uint64_t time = 0;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time)::"memory");
  return time;
}

// Launched without early start: it runs when everything before it in the stream has ended, and what
// follows begins after it.
__global__ void stamp_kernel(TimerEntry* ring, uint32_t capacity, unsigned long long* count,
                             uint32_t part, uint32_t stream) {
  const uint64_t time = global_timer();
  const unsigned long long at = atomicAdd(count, 1ULL);
  TimerEntry entry;
  entry.time = time;
  entry.part = part;
  entry.stream = stream;
  ring[at % capacity] = entry;
}

__global__ void resolution_kernel(uint64_t* out) {
  uint64_t least = ~uint64_t{0}, last = global_timer();
  for (int changes = 0; changes < 16;) {
    const uint64_t now = global_timer();
    if (now == last) continue;
    if (changes > 0 && now - last < least) least = now - last;
    last = now;
    ++changes;
  }
  out[0] = least;
  out[1] = last;
}

}  // namespace

void launch_stamp(TimerEntry* ring, uint32_t capacity, unsigned long long* count, uint32_t part,
                  uint32_t stream_number, cudaStream_t stream) {
  stamp_kernel<<<1, 1, 0, stream>>>(ring, capacity, count, part, stream_number);
  TRIREME_CUDA(cudaGetLastError());
}

void launch_timer_resolution(uint64_t* out, cudaStream_t stream) {
  resolution_kernel<<<1, 1, 0, stream>>>(out);
  TRIREME_CUDA(cudaGetLastError());
}

}  // namespace trireme::cuda
