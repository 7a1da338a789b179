// What CudaBackend does with other ranks' memory, and for those who measure it.
#include <algorithm>
#include <chrono>
#include <thread>

#include "base/error.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/device_logits.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/limits.h"
#include "kernels/cuda/peer_sum.h"

namespace trireme::cuda {
namespace {

class CudaPeerSums final : public PeerSums {
 public:
  CudaPeerSums(const PeerLanes& lanes, cudaStream_t stream) : lanes_(lanes), stream_(stream) {}

  bool takes(int64_t rows, int64_t cols, DType dtype) const override {
    const int64_t bytes = rows * cols * static_cast<int64_t>(size_of(dtype));
    return peer_sum_supports(lanes_, bytes, dtype) &&
           (dtype != kElement || peer_sum_norm_supports(lanes_, rows, cols));
  }

  void sum(MatrixView x, PeerShots shots, int blocks) override {
    PeerSum args;
    args.lanes = lanes_;
    args.data = x.data;
    args.dtype = x.dtype;
    args.bytes = x.rows * x.cols * static_cast<int64_t>(size_of(x.dtype));
    args.blocks = blocks;
    launch_peer_sum(args, shots == PeerShots::kTwo, stream_);
  }

  void add_rms_norm(MatrixView residual, MatrixView delta, const float* weight, float eps,
                    MatrixView out, PeerShots shots) override {
    PeerSumNorm args;
    args.lanes = lanes_;
    args.delta = delta.data;
    args.delta_stride = delta.stride;
    args.residual = residual.f32();
    args.weight = weight;
    args.eps = eps;
    args.rows = static_cast<int32_t>(residual.rows);
    args.cols = static_cast<int32_t>(residual.cols);
    args.out = out.data;
    launch_peer_sum_norm(args, shots == PeerShots::kTwo, stream_);
  }

 private:
  PeerLanes lanes_;
  cudaStream_t stream_;
};

// A pair of events with the time between them.
class Stopwatch {
 public:
  Stopwatch() {
    TRIREME_CUDA(cudaEventCreate(&begin_));
    TRIREME_CUDA(cudaEventCreate(&end_));
  }
  ~Stopwatch() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  void begin(cudaStream_t stream) { TRIREME_CUDA(cudaEventRecord(begin_, stream)); }
  double end(cudaStream_t stream) {
    float ms = 0;
    TRIREME_CUDA(cudaEventRecord(end_, stream));
    // Not cudaEventSynchronize: what is measured may wait for another rank that never comes.
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    for (cudaError_t status; (status = cudaEventQuery(end_)) != cudaSuccess;) {
      if (status != cudaErrorNotReady) TRIREME_CUDA(status);
      if (std::chrono::steady_clock::now() > limit) {
        fail(ErrorCode::kDeadlineExceeded, "what is measured on the GPU has not ended in 30 s");
      }
      std::this_thread::yield();
    }
    TRIREME_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
    return static_cast<double>(ms) * 1e-3;
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace

Buffer CudaBackend::chosen_tokens(int32_t slots) {
  const size_t bytes = static_cast<size_t>(std::max(slots, 1)) * sizeof(int32_t);
  if (newest_.empty()) {
    newest_ = allocate(bytes);
    TRIREME_CUDA(cudaMemsetAsync(newest_.data(), 0, newest_.size(), stream_));
    synchronize();  // other streams may write there
  }
  if (newest_.size() != bytes) {
    fail(ErrorCode::kInternal, "chosen tokens of {} slots, not of {}", newest_.size() / 4, slots);
  }
  return newest_.part(0, bytes);
}

std::unique_ptr<LogitRows> CudaBackend::make_logit_rows(int32_t slots) {
  chosen_tokens(slots);
  return std::make_unique<DeviceLogitRows>(*this, device_, stream_, newest_.as<int32_t>(), lanes_);
}

// The matrix rate is that of a product of 8192³ (less where memory is short), as prefill runs it.
MachineLimits CudaBackend::measure_limits(QuantFormat /*weights*/) {
  TRIREME_CUDA(cudaSetDevice(device_));
  const double bandwidth = measure_read_bandwidth(stream_);
  int64_t n = 8192;
  while (n > 1024 && device_memory()->free < 4 * n * n * 2) n /= 2;
  const Buffer x = allocate(static_cast<size_t>(n * n * 2)), w = allocate(x.size());
  const Buffer y = allocate(x.size());
  launch_fill_random(x.data(), n * n, 1, stream_);
  launch_fill_random(w.data(), n * n, 2, stream_);
  Gemm gemm;
  gemm.x = x.data();
  gemm.x_stride = gemm.rows = gemm.cols = gemm.y_stride = n;
  gemm.tokens = static_cast<int32_t>(n);
  gemm.weight = w.data();
  gemm.y = y.data();
  cudaEvent_t begin = nullptr, end = nullptr;
  TRIREME_CUDA(cudaEventCreate(&begin));
  TRIREME_CUDA(cudaEventCreate(&end));
  constexpr int kProducts = 10;
  float best = 1e30f;
  for (int pass = 0; pass < 4; ++pass) {
    TRIREME_CUDA(cudaEventRecord(begin, stream_));
    for (int i = 0; i < kProducts; ++i) cublas_->run(gemm, stream_);
    TRIREME_CUDA(cudaEventRecord(end, stream_));
    TRIREME_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    TRIREME_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (pass > 0) best = std::min(best, ms);
  }
  TRIREME_CUDA(cudaEventDestroy(begin));
  TRIREME_CUDA(cudaEventDestroy(end));
  const double operations = 2.0 * static_cast<double>(n) * static_cast<double>(n * n) * kProducts;
  return {bandwidth, operations / (static_cast<double>(best) * 1e-3),
          fmt::format("{} matrix products", to_string(kElement))};
}

size_t CudaBackend::peer_bytes(int ranks, int64_t width) const {
  return peer_lanes_bytes(ranks, width * kElementBytes);
}

std::unique_ptr<PeerSums> CudaBackend::make_peer_sums(PeerBuffers peers, int64_t width) {
  if (peers.bytes < peer_bytes(peers.size, width)) {
    fail(ErrorCode::kInternal, "peer memory: {} bytes are less than {}", peers.bytes,
         peer_bytes(peers.size, width));
  }
  peers_ = std::move(peers);
  lanes_ = make_peer_lanes(peers_, width * kElementBytes);
  return std::make_unique<CudaPeerSums>(lanes_, stream_);
}

// From a graph, as a decode step runs it.
double CudaBackend::measure(const std::function<void()>& work, int times) {
  TRIREME_CUDA(cudaSetDevice(device_));
  work();  // kernels are loaded
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  TRIREME_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < times; ++i) work();
  TRIREME_CUDA(cudaStreamEndCapture(stream_, &graph));
  const cudaError_t status = cudaGraphInstantiate(&replay, graph, 0);
  cudaGraphDestroy(graph);
  TRIREME_CUDA(status);
  Stopwatch watch;
  double best = 1e30;
  for (int round = 0; round < 5; ++round) {
    watch.begin(stream_);
    TRIREME_CUDA(cudaGraphLaunch(replay, stream_));
    best = std::min(best, watch.end(stream_) / times);
  }
  TRIREME_CUDA(cudaGraphExecDestroy(replay));
  return best;
}

}  // namespace trireme::cuda
