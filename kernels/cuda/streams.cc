// Streams and marks beside the ops.
#include "kernels/cuda/backend.h"
#include "kernels/cuda/check.h"

namespace trireme::cuda {
namespace {

class CudaSideStream final : public SideStream {
 public:
  CudaSideStream() { TRIREME_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~CudaSideStream() override { cudaStreamDestroy(stream_); }
  CudaSideStream(const CudaSideStream&) = delete;
  CudaSideStream& operator=(const CudaSideStream&) = delete;
  void* native() const override { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaMark final : public StreamMark {
 public:
  CudaMark() { TRIREME_CUDA(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~CudaMark() override { cudaEventDestroy(event_); }
  CudaMark(const CudaMark&) = delete;
  CudaMark& operator=(const CudaMark&) = delete;

  void set(void* stream) override {
    TRIREME_CUDA(cudaEventRecord(event_, static_cast<cudaStream_t>(stream)));
  }
  void await(void* stream) override {
    TRIREME_CUDA(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), event_, 0));
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

std::unique_ptr<SideStream> CudaBackend::make_side_stream() {
  TRIREME_CUDA(cudaSetDevice(device_));
  return std::make_unique<CudaSideStream>();
}

std::unique_ptr<StreamMark> CudaBackend::make_mark() {
  TRIREME_CUDA(cudaSetDevice(device_));
  return std::make_unique<CudaMark>();
}

}  // namespace trireme::cuda
