// Stamps of the GPU's global timer, and how it stands to the host's steady clock.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/streams.h"

namespace trireme::cuda {

// What a stamp leaves in the ring.
struct alignas(16) TimerEntry {
  uint64_t time = 0;  // ns of the GPU's global timer
  uint32_t part = 0;
  uint32_t stream = 0;
};

// `ring` has `capacity` entries; `count` is how many were ever written.
void launch_stamp(TimerEntry* ring, uint32_t capacity, unsigned long long* count, uint32_t part,
                  uint32_t stream_number, cudaStream_t stream);
// Reads the timer until it has changed a few times: out[0] the least step, out[1] its last value.
void launch_timer_resolution(uint64_t* out, cudaStream_t stream);

class CudaStepTimer final : public StepTimer {
 public:
  // `forget`: drops what is recorded for replay.
  CudaStepTimer(int device, cudaStream_t stream, std::function<void()> forget);
  ~CudaStepTimer() override;
  CudaStepTimer(const CudaStepTimer&) = delete;
  CudaStepTimer& operator=(const CudaStepTimer&) = delete;

  void start(size_t stamps) override;
  void stamp(DevicePart part, void* stream) override;
  DeviceTimes stop() override;

 private:
  // How the two clocks stood when the host's was `host`.
  struct Alignment {
    int64_t host = 0;
    int64_t offset = 0;  // host - device
    int64_t error = 0;
  };
  Alignment align();
  uint8_t number_of(cudaStream_t stream);
  void release();

  int device_;
  cudaStream_t stream_;
  std::function<void()> forget_;
  TimerEntry* ring_ = nullptr;
  unsigned long long* count_ = nullptr;  // on the device, as the ring
  uint32_t capacity_ = 0;
  int64_t resolution_ = 0;
  Alignment early_;
  std::vector<cudaStream_t> streams_;  // numbered from 0
};

}  // namespace trireme::cuda
