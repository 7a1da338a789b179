#pragma once

namespace trireme::cuda {

// SiLU, or GELU by tanh.
__device__ __forceinline__ float activate(float x, bool gelu_tanh) {
  if (gelu_tanh) {
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
  }
  return x / (1.0f + __expf(-x));
}

}  // namespace trireme::cuda
