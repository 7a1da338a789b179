#include "kernels/cuda/step_timer.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "kernels/cuda/check.h"

namespace trireme::cuda {
namespace {

constexpr int kAlignments = 20;

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

CudaStepTimer::CudaStepTimer(int device, cudaStream_t stream, std::function<void()> forget)
    : device_(device), stream_(stream), forget_(std::move(forget)) {}

CudaStepTimer::~CudaStepTimer() { release(); }

void CudaStepTimer::release() {
  cudaFree(ring_);
  cudaFree(count_);
  ring_ = nullptr;
  count_ = nullptr;
}

// The kernel reads the GPU's clock between two looks at the host's; the closest two count.
CudaStepTimer::Alignment CudaStepTimer::align() {
  TimerEntry* entry = nullptr;
  TRIREME_CUDA(cudaMallocHost(reinterpret_cast<void**>(&entry), sizeof(TimerEntry)));
  Alignment best{0, 0, INT64_MAX};
  for (int i = 0; i < kAlignments; ++i) {
    const int64_t before = now();
    launch_stamp(entry, 1, count_, 0, 0, stream_);
    TRIREME_CUDA(cudaStreamSynchronize(stream_));
    const int64_t after = now();
    const int64_t error = (after - before + 1) / 2;
    if (error >= best.error) continue;
    best = {(before + after) / 2, (before + after) / 2 - static_cast<int64_t>(entry->time), error};
  }
  TRIREME_CUDA(cudaFreeHost(entry));
  return best;
}

void CudaStepTimer::start(size_t stamps) {
  if (ring_ != nullptr) fail(ErrorCode::kInternal, "step timer: started twice");
  if (stamps == 0 || stamps > (size_t{1} << 30)) {
    fail(ErrorCode::kInvalidArgument, "step timer: room for {} stamps", stamps);
  }
  TRIREME_CUDA(cudaSetDevice(device_));
  TRIREME_CUDA(cudaStreamSynchronize(stream_));
  TRIREME_CUDA(cudaMalloc(reinterpret_cast<void**>(&ring_), stamps * sizeof(TimerEntry)));
  TRIREME_CUDA(cudaMalloc(reinterpret_cast<void**>(&count_), sizeof *count_));
  TRIREME_CUDA(cudaMemset(count_, 0, sizeof *count_));
  capacity_ = static_cast<uint32_t>(stamps);
  streams_ = {stream_};
  uint64_t* resolution = nullptr;
  TRIREME_CUDA(cudaMallocHost(reinterpret_cast<void**>(&resolution), 2 * sizeof(uint64_t)));
  launch_timer_resolution(resolution, stream_);
  TRIREME_CUDA(cudaStreamSynchronize(stream_));
  resolution_ = static_cast<int64_t>(resolution[0]);
  TRIREME_CUDA(cudaFreeHost(resolution));
  early_ = align();
  TRIREME_CUDA(cudaMemset(count_, 0, sizeof *count_));  // the alignment's stamps
  TRIREME_CUDA(cudaDeviceSynchronize());
  forget_();
}

uint8_t CudaStepTimer::number_of(cudaStream_t stream) {
  const auto at = std::find(streams_.begin(), streams_.end(), stream);
  if (at != streams_.end()) return static_cast<uint8_t>(at - streams_.begin());
  streams_.push_back(stream);
  return static_cast<uint8_t>(streams_.size() - 1);
}

void CudaStepTimer::stamp(DevicePart part, void* stream) {
  if (ring_ == nullptr) return;
  const cudaStream_t on = stream == nullptr ? stream_ : static_cast<cudaStream_t>(stream);
  launch_stamp(ring_, capacity_, count_, static_cast<uint32_t>(part), number_of(on), on);
}

DeviceTimes CudaStepTimer::stop() {
  DeviceTimes times;
  if (ring_ == nullptr) return times;
  TRIREME_CUDA(cudaSetDevice(device_));
  TRIREME_CUDA(cudaDeviceSynchronize());
  unsigned long long count = 0;
  TRIREME_CUDA(cudaMemcpy(&count, count_, sizeof count, cudaMemcpyDeviceToHost));
  const auto kept = static_cast<size_t>(std::min<unsigned long long>(count, capacity_));
  std::vector<TimerEntry> entries(kept);
  if (kept > 0) {
    TRIREME_CUDA(
        cudaMemcpy(entries.data(), ring_, kept * sizeof(TimerEntry), cudaMemcpyDeviceToHost));
  }
  const Alignment late = align();
  // The host's time of the device's, between the two alignments.
  const int64_t early_device = early_.host - early_.offset, late_device = late.host - late.offset;
  const double drift = static_cast<double>(late.offset - early_.offset) /
                       static_cast<double>(std::max<int64_t>(1, late_device - early_device));
  for (const TimerEntry& entry : entries) {
    const auto device = static_cast<int64_t>(entry.time);
    const auto since = static_cast<double>(device - early_device);
    times.stamps.push_back({device + early_.offset + static_cast<int64_t>(drift * since),
                            static_cast<DevicePart>(entry.part),
                            static_cast<uint8_t>(entry.stream)});
  }
  // The ring's order is that of the atomic counter: within a stream, that of time.
  std::stable_sort(times.stamps.begin(), times.stamps.end(),
                   [](const DeviceStamp& a, const DeviceStamp& b) {
                     return a.stream != b.stream ? a.stream < b.stream : a.time < b.time;
                   });
  times.dropped = count - kept;
  times.clock_error = std::max(early_.error, late.error);
  times.resolution = resolution_;
  release();
  forget_();  // graphs stamp into memory that is gone
  return times;
}

}  // namespace trireme::cuda
