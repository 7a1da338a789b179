// The small ops of the GPU backend. Residual stream and logits are float32, activations elements.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace trireme::cuda {

// out[i] = the table's row of token i (elements) as float32 times scale; zeros where it has none.
struct Embed {
  const int32_t* tokens = nullptr;
  // Where slots[i] >= 0 token i is newest[slots[i]] instead; null: nowhere.
  const int32_t* slots = nullptr;
  const int32_t* newest = nullptr;
  const void* table = nullptr;  // rows of the tokens from vocab_begin on
  int64_t vocab_begin = 0;
  int64_t vocab_count = 0;
  int64_t cols = 0;
  float scale = 1.0f;
};
void launch_embed(const Embed& embed, int64_t count, float* out, cudaStream_t stream);

// With `delta` (elements, rows delta_stride apart) residual += delta first. out = element(residual
// / rms(residual) * weight); weight null: only the addition. residual and out are contiguous.
void launch_rms_norm(float* residual, const void* delta, int64_t delta_stride, const float* weight,
                     float eps, int64_t rows, int64_t cols, void* out, cudaStream_t stream);

// residual += delta / rms(delta) * delta_norm; then as launch_rms_norm.
void launch_add_normed(float* residual, const void* delta, int64_t delta_stride,
                       const float* delta_norm, const float* weight, float eps, int64_t rows,
                       int64_t cols, void* out, cudaStream_t stream);

// out = activation(gate) * up; elements, each with its own row stride; out may be gate.
void launch_gated_activation(const void* gate, int64_t gate_stride, const void* up,
                             int64_t up_stride, bool gelu_tanh, int64_t rows, int64_t cols,
                             void* out, int64_t out_stride, cudaStream_t stream);

// Row i of out = row indices[i] of x; float32, contiguous.
void launch_gather_rows(const float* x, const int32_t* indices, int64_t count, int64_t cols,
                        float* out, cudaStream_t stream);

// Copies pieces of page-locked host memory, read by the kernel itself, to device addresses: one
// launch where copies would each cost microseconds of the stream. Multiples of 16 bytes.
struct Pieces {
  static constexpr int kMost = 32;
  struct Piece {
    const void* from = nullptr;
    void* to = nullptr;
    uint32_t bytes = 0;
  };
  Piece pieces[kMost];
  int count = 0;
};
void launch_scatter(const Pieces& pieces, cudaStream_t stream);

// `count` elements of about a normal distribution's spread, for measurements.
void launch_fill_random(void* to, int64_t count, uint32_t seed, cudaStream_t stream);

}  // namespace trireme::cuda
