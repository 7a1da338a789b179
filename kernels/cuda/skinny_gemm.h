// How a skinny product is cut into blocks. The bits of a result depend on `warps` alone, which
// follows from the weight's shape; the rest may follow the number of tokens.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/gemm.h"

namespace trireme::cuda {

struct SkinnyShape {
  int warps = 8;   // of a block; they share out the columns
  int groups = 4;  // of 8 weight rows, to a block
  int depth = 3;   // chunks of 64 columns that a warp keeps on their way
};

SkinnyShape choose_skinny_shape(const Gemm& gemm);

// launch_skinny_gemm with a shape of the caller's choice (for the benchmark); false if it is not
// built. `overlap`: programmatic dependent launch, where the chip has it.
bool launch_skinny_gemm_as(const SkinnyShape& shape, const Gemm& gemm, bool overlap,
                           cudaStream_t stream);

// y[tokens, rows] += bias, y bf16: for products of the library that cannot do it themselves.
void launch_add_bias(const Gemm& gemm, cudaStream_t stream);

}  // namespace trireme::cuda
