#include <algorithm>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/block_sum.cuh"
#include "kernels/cuda/check.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/launch_early.h"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void embed_kernel(const __grid_constant__ Embed embed, float* out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int32_t slot = embed.slots != nullptr ? embed.slots[blockIdx.x] : -1;
  const int64_t row =
      (slot >= 0 ? embed.newest[slot] : embed.tokens[blockIdx.x]) - embed.vocab_begin;
  const bool here = row >= 0 && row < embed.vocab_count;
  const auto* from = reinterpret_cast<const Element2*>(static_cast<const Element*>(embed.table) +
                                                       (here ? row : 0) * embed.cols);
  float2* to = reinterpret_cast<float2*>(out + blockIdx.x * embed.cols);
  for (int64_t i = threadIdx.x; i < embed.cols / 2; i += blockDim.x) {
    const float2 value = widen(from[i]);
    to[i] =
        here ? make_float2(value.x * embed.scale, value.y * embed.scale) : make_float2(0.0f, 0.0f);
  }
}

__device__ float4 load_delta(const Element* delta) {
  const uint2 bits = *reinterpret_cast<const uint2*>(delta);
  const float2 low = widen(reinterpret_cast<const Element2&>(bits.x));
  const float2 high = widen(reinterpret_cast<const Element2&>(bits.y));
  return make_float4(low.x, low.y, high.x, high.y);
}

__device__ float square_sum(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

// One block a row; kPerThread float4 of the row stay in registers between the passes. With
// `delta_norm` the row of `delta` is normalized before it is added.
template <int kPerThread>
__global__ void rms_norm_kernel(float* residual, const Element* delta, int64_t delta_stride,
                                const float* delta_norm, const float* weight, float eps, int cols,
                                Element* out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  float4* row = reinterpret_cast<float4*>(residual + int64_t{blockIdx.x} * cols);
  if (delta != nullptr) delta += int64_t{blockIdx.x} * delta_stride;
  float delta_inverse = 1.0f;
  if (delta_norm != nullptr) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i * 4 < cols; i += blockDim.x) {
      squares += square_sum(load_delta(delta + i * 4));
    }
    delta_inverse = rsqrtf(block_sum(squares) / static_cast<float>(cols) + eps);
    __syncthreads();  // block_sum's memory is used again
  }
  float4 kept[kPerThread];
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int i = threadIdx.x + k * blockDim.x;
    kept[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (i * 4 >= cols) continue;
    float4 v = row[i];
    if (delta != nullptr) {
      float4 d = load_delta(delta + i * 4);
      if (delta_norm != nullptr) {
        const float4 w = reinterpret_cast<const float4*>(delta_norm)[i];
        d = make_float4(d.x * delta_inverse * w.x, d.y * delta_inverse * w.y,
                        d.z * delta_inverse * w.z, d.w * delta_inverse * w.w);
      }
      v = make_float4(v.x + d.x, v.y + d.y, v.z + d.z, v.w + d.w);
      row[i] = v;
    }
    kept[k] = v;
    squares += square_sum(v);
  }
  if (weight == nullptr) return;
  const float inverse = rsqrtf(block_sum(squares) / static_cast<float>(cols) + eps);
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int i = threadIdx.x + k * blockDim.x;
    if (i * 4 >= cols) continue;
    const float4 w = reinterpret_cast<const float4*>(weight)[i];
    const float4 v = kept[k];
    Element2 pair[2] = {narrow(v.x * inverse * w.x, v.y * inverse * w.y),
                        narrow(v.z * inverse * w.z, v.w * inverse * w.w)};
    *reinterpret_cast<uint2*>(out + int64_t{blockIdx.x} * cols + i * 4) =
        *reinterpret_cast<const uint2*>(pair);
  }
}

__global__ void gated_activation_kernel(const Element* gate, int64_t gate_stride, const Element* up,
                                        int64_t up_stride, bool gelu_tanh, int64_t cols,
                                        Element* out, int64_t out_stride) {
  const int64_t at = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 8;
  if (at >= cols) return;
  const int64_t row = blockIdx.y;
  uint4 g = *reinterpret_cast<const uint4*>(gate + row * gate_stride + at);
  const uint4 u = *reinterpret_cast<const uint4*>(up + row * up_stride + at);
  Element2* gs = reinterpret_cast<Element2*>(&g);
  const Element2* us = reinterpret_cast<const Element2*>(&u);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 a = widen(gs[i]), b = widen(us[i]);
    gs[i] = narrow(activate(a.x, gelu_tanh) * b.x, activate(a.y, gelu_tanh) * b.y);
  }
  *reinterpret_cast<uint4*>(out + row * out_stride + at) = g;
}

__global__ void gather_rows_kernel(const float* x, const int32_t* indices, int64_t cols,
                                   float* out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const float4* from = reinterpret_cast<const float4*>(x + indices[blockIdx.x] * cols);
  float4* to = reinterpret_cast<float4*>(out + blockIdx.x * cols);
  for (int64_t i = threadIdx.x; i < cols / 4; i += blockDim.x) to[i] = from[i];
}

__global__ void scatter_kernel(const __grid_constant__ Pieces pieces) {
  const Pieces::Piece& piece = pieces.pieces[blockIdx.x];
  const auto* from = static_cast<const uint4*>(piece.from);
  auto* to = static_cast<uint4*>(piece.to);
  const uint32_t count = piece.bytes / 16;
  for (uint32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < count; i += gridDim.y * blockDim.x) {
    to[i] = from[i];
  }
}

__global__ void fill_random_kernel(Element* to, int64_t count, uint32_t seed) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  uint32_t x = static_cast<uint32_t>(at) * 0x9e3779b9u + seed;
  float sum = 0.0f;
  for (int i = 0; i < 4; ++i) {  // the sum of four even distributions
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x ^= x >> 16;
    sum += static_cast<float>(x) * 0x1p-32f - 0.5f;
  }
  to[at] = narrow(sum * 1.7f);
}

}  // namespace

void launch_scatter(const Pieces& pieces, cudaStream_t stream) {
  if (pieces.count == 0) return;
  uint32_t most = 0;
  for (int i = 0; i < pieces.count; ++i) most = std::max(most, pieces.pieces[i].bytes);
  const unsigned deep = std::clamp(most / (16 * kThreads), 1u, 32u);
  scatter_kernel<<<dim3(static_cast<unsigned>(pieces.count), deep), kThreads, 0, stream>>>(pieces);
  TRIREME_CUDA(cudaGetLastError());
}

void launch_fill_random(void* to, int64_t count, uint32_t seed, cudaStream_t stream) {
  fill_random_kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                       stream>>>(static_cast<Element*>(to), count, seed);
  TRIREME_CUDA(cudaGetLastError());
}

void launch_embed(const Embed& embed, int64_t count, float* out, cudaStream_t stream) {
  if (count == 0) return;
  launch_early(embed_kernel, dim3(static_cast<unsigned>(count)), kThreads, stream, embed, out);
}

void launch_rms_norm(float* residual, const void* delta, int64_t delta_stride, const float* weight,
                     float eps, int64_t rows, int64_t cols, void* out, cudaStream_t stream) {
  launch_add_normed(residual, delta, delta_stride, nullptr, weight, eps, rows, cols, out, stream);
}

void launch_add_normed(float* residual, const void* delta, int64_t delta_stride,
                       const float* delta_norm, const float* weight, float eps, int64_t rows,
                       int64_t cols, void* out, cudaStream_t stream) {
  if (rows == 0) return;
  const int vectors = static_cast<int>(cols / 4);
  const int threads = std::clamp((vectors + 31) / 32 * 32, 32, 512);
  const int per_thread = (vectors + threads - 1) / threads;
  const auto launch = [&](auto kernel) {
    launch_early(kernel, dim3(static_cast<unsigned>(rows)), threads, stream, residual,
                 static_cast<const Element*>(delta), delta_stride, delta_norm, weight, eps,
                 static_cast<int>(cols), static_cast<Element*>(out));
  };
  if (per_thread <= 1) {
    launch(rms_norm_kernel<1>);
  } else if (per_thread <= 2) {
    launch(rms_norm_kernel<2>);
  } else if (per_thread <= 4) {
    launch(rms_norm_kernel<4>);
  } else if (per_thread <= 16) {
    launch(rms_norm_kernel<16>);
  } else {
    fail_internal("rms_norm: more than 32768 columns");
  }
}

void launch_gated_activation(const void* gate, int64_t gate_stride, const void* up,
                             int64_t up_stride, bool gelu_tanh, int64_t rows, int64_t cols,
                             void* out, int64_t out_stride, cudaStream_t stream) {
  constexpr int64_t kMostRows = 65535;  // of a grid's y
  for (int64_t row = 0; row < rows; row += kMostRows) {
    const auto count = static_cast<unsigned>(std::min(rows - row, kMostRows));
    const dim3 grid(static_cast<unsigned>((cols / 8 + kThreads - 1) / kThreads), count);
    gated_activation_kernel<<<grid, kThreads, 0, stream>>>(
        static_cast<const Element*>(gate) + row * gate_stride, gate_stride,
        static_cast<const Element*>(up) + row * up_stride, up_stride, gelu_tanh, cols,
        static_cast<Element*>(out) + row * out_stride, out_stride);
    TRIREME_CUDA(cudaGetLastError());
  }
}

void launch_gather_rows(const float* x, const int32_t* indices, int64_t count, int64_t cols,
                        float* out, cudaStream_t stream) {
  if (count == 0) return;
  launch_early(gather_rows_kernel, dim3(static_cast<unsigned>(count)), kThreads, stream, x, indices,
               cols, out);
}

}  // namespace trireme::cuda
