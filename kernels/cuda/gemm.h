// Matrix products of the GPU backend: y[tokens, rows] = x[tokens, cols] Wᵀ. Weights are
// elements (element.h), plain row-major [rows, cols], 16-byte aligned, cols a multiple of 8; x is
// of elements; sums are float32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "kernels/cuda/element.h"

namespace trireme::cuda {

enum class GemmOut : uint8_t {
  kElement,  // y is of elements
  kF32,      // y is float32 (logits)
  kAddF32,   // y is float32 and added to (the residual stream)
  kSwiGlu,   // weight holds gate rows and then up rows: y elements [tokens, rows / 2] =
  kGeGlu,    //   activation(gate) * up; SiLU or tanh-GELU
};

struct Gemm {
  const void* x = nullptr;  // elements [tokens, cols], row stride x_stride elements
  int64_t x_stride = 0;
  const void* weight = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  const float* bias = nullptr;  // float32 [rows], device; optional (kElement, kF32, kAddF32)
  GemmOut kind = GemmOut::kElement;
  void* y = nullptr;
  int64_t y_stride = 0;
  int32_t tokens = 0;
  // Only for skinny products. With `norm`, x is the residual stream instead: float32, and what is
  // multiplied is x / rms(x) * norm, rms over cols with eps inside the root. Only if kSkinnyNorms.
  const float* norm = nullptr;  // float32 [cols], device
  float norm_eps = 0.0f;
};

// The largest number of tokens that launch_skinny_gemm takes.
inline constexpr int kMaxSkinnyTokens = 16;
// And with a norm. With f16 none: x * norm is rounded before 1 / rms is known, and where the
// residual stream is large that is beyond f16.
inline constexpr int kMaxNormedTokens = kElementIsF16 ? 0 : kMaxSkinnyTokens;
inline constexpr bool kSkinnyNorms = kMaxNormedTokens > 0;

// Our own kernel for 1 to 16 tokens, bound by reading the weights: launched with programmatic
// dependent launch, weights are requested before the wait for the previous kernel. The bits of a
// token's result depend neither on the other tokens nor on their number. x, weight and norm are
// 16-byte aligned, x_stride a multiple of 8; norm is applied as element(x * norm), and 1 / rms to
// the sums. Replayable in a graph, needs no workspace unless
// skinny_workspace_bytes() says so (zeroed once at allocation; may be shared by calls of one
// stream).
void launch_skinny_gemm(const Gemm& gemm, void* workspace, cudaStream_t stream);
size_t skinny_workspace_bytes();

// Larger products through cuBLASLt: algorithms are chosen by timing the library's candidates once
// per shape (rows, cols, token bucket) and kept. `norm` must be null, kind kSwiGlu/kGeGlu is not
// taken (the caller applies the activation).
class CublasGemm {
 public:
  explicit CublasGemm(size_t workspace_bytes = 32 << 20);
  ~CublasGemm();
  void run(const Gemm& gemm, cudaStream_t stream);
  // Chooses now (not inside a capture) the algorithm for this product's shape.
  void tune(const Gemm& gemm, cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme::cuda
