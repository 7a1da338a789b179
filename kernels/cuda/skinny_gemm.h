// How a skinny product is cut into blocks. The bits of a result do not depend on it.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/gemm.h"

namespace trireme::cuda {

struct SkinnyShape {
  // Weight rows that a block multiplies at a time, in groups of 8. 0: it walks over its rows one
  // group at a time, with the activations resident in shared memory.
  int groups = 4;
  int depth = 3;   // chunks of 64 columns that a warp keeps on their way
  int per_sm = 0;  // where it walks: blocks for each multiprocessor; then `depth` counts stages of
                   // 512 columns for the whole block
  bool wide = false;
  bool alone = false;
  int most = 24;
};

SkinnyShape choose_skinny_shape(const Gemm& gemm);

// launch_skinny_gemm with a shape of the caller's choice (for the benchmark); false if it is not
// built. `overlap`: programmatic dependent launch, where the chip has it.
bool launch_skinny_gemm_as(const SkinnyShape& shape, const Gemm& gemm, bool overlap,
                           cudaStream_t stream);

// y[tokens, rows] += bias, y bf16: for products of the library that cannot do it themselves.
void launch_add_bias(const Gemm& gemm, cudaStream_t stream);

}  // namespace trireme::cuda
