// Weights on their way from a mapped file to the device: rows are converted to the element by
// several threads into page-locked staging, and copied while the next rows are being converted.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/weight.h"

namespace trireme::cuda {

class WeightUpload {
 public:
  // `pool` reads and converts; it must outlive this object.
  WeightUpload(ThreadPool& pool, cudaStream_t stream);
  ~WeightUpload();
  WeightUpload(const WeightUpload&) = delete;
  WeightUpload& operator=(const WeightUpload&) = delete;

  // to[rows, col_count] (elements, device) = the slice's own columns. The copies are queued.
  void run(const WeightSlice& slice, std::byte* to);
  void finish();  // all copies have ended

 private:
  static constexpr size_t kStagingBytes = size_t{32} << 20;
  struct Staging {
    std::byte* data = nullptr;
    cudaEvent_t done = nullptr;
  };
  ThreadPool& pool_;
  cudaStream_t stream_;
  std::array<Staging, 2> staging_;
  size_t turn_ = 0;
};

}  // namespace trireme::cuda
