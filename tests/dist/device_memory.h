// Device memory and streams for tests and benchmarks of communicators.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "parallel/communicator.h"

namespace trireme {

inline void must(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

class TestStream {
 public:
  TestStream() { must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~TestStream() { cudaStreamDestroy(stream_); }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  cudaStream_t get() const { return stream_; }
  StreamHandle handle() const { return {stream_}; }

 private:
  cudaStream_t stream_ = nullptr;
};

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) : bytes_(bytes) {
    must(cudaMalloc(&data_, bytes + 1));
    must(cudaMemset(data_, 0x7f, bytes + 1));  // poison
    must(cudaDeviceSynchronize());
  }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  std::span<std::byte> span() const { return {data(), bytes_}; }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// cudaMemcpy returns when the host's memory may go, and other streams do not wait for the rest.
template <typename T>
void to_device(void* to, const std::vector<T>& from) {
  must(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  must(cudaDeviceSynchronize());
}
template <typename T>
std::vector<T> from_device(const void* from, size_t count) {
  std::vector<T> to(count);
  must(cudaMemcpy(to.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
  return to;
}

}  // namespace trireme
