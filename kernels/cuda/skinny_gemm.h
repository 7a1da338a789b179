// How a skinny product is cut into blocks. The bits of a result do not depend on it.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/gemm.h"

namespace trireme::cuda {

struct SkinnyShape {
  // Weight rows that a block multiplies at once, in groups of 8 (skinny_gemm.cuh). 0: it walks over
  // its rows one group at a time, with the activations in shared memory (skinny_walk.cuh).
  int groups = 4;
  // Chunks of 64 columns that each warp keeps on their way; where the block walks, stages that it
  // keeps on their way, 0: as many as there is shared memory for.
  int depth = 3;
  // Where it walks: blocks for each multiprocessor, and stages of 1024 columns rather than 512.
  int per_sm = 0;
  bool wide = false;
};

SkinnyShape choose_skinny_shape(const Gemm& gemm);

// launch_skinny_gemm with a shape of the caller's choice (for the benchmark); false if it is not
// built. `overlap`: programmatic dependent launch, where the chip has it.
bool launch_skinny_gemm_as(const SkinnyShape& shape, const Gemm& gemm, bool overlap,
                           cudaStream_t stream);

// y[tokens, rows] += bias, y of elements: for products of the library that cannot do it themselves.
void launch_add_bias(const Gemm& gemm, cudaStream_t stream);

}  // namespace trireme::cuda
