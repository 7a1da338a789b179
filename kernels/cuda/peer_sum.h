// Sums over tensor ranks, made by kernels of our own through memory that the ranks map from each
// other (peer_lanes.h). Terms are added in the order of the ranks, in float32: all ranks come to
// the same bits. Replayable in a graph; launched with programmatic dependent launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/cuda/peer_lanes.h"

namespace trireme::cuda {

// residual += sum over ranks of delta; out = bf16(residual / rms(residual) * weight). A block a
// row.
struct PeerSumNorm {
  PeerLanes lanes;
  const void* delta = nullptr;    // bf16, 16-byte aligned rows
  int64_t delta_stride = 0;       // elements, a multiple of 8
  float* residual = nullptr;      // [rows, cols], contiguous
  const float* weight = nullptr;  // [cols]; null: only the addition
  float eps = 0.0f;
  int32_t rows = 0;
  int32_t cols = 0;     // a multiple of 8
  void* out = nullptr;  // bf16 [rows, cols], contiguous
};

bool peer_sum_norm_supports(const PeerLanes& lanes, int64_t rows, int64_t cols);

// One shot: every rank sends its terms to all and adds all. Two shots: each rank adds a part, and
// sends that sum, rounded to bf16, to all: fewer bytes from three ranks on.
void launch_peer_sum_norm(const PeerSumNorm& sum, bool two_shots, cudaStream_t stream);

// data = sum over ranks of data: float32 or bf16, 16-byte aligned, a multiple of 16 bytes.
struct PeerSum {
  PeerLanes lanes;
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t bytes = 0;
  int32_t blocks = 0;  // at least those that the lanes' size asks for; 0: that many
};

bool peer_sum_supports(const PeerLanes& lanes, int64_t bytes, DType dtype);
void launch_peer_sum(const PeerSum& sum, bool two_shots, cudaStream_t stream);

}  // namespace trireme::cuda
