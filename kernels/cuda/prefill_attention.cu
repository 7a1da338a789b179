#include "kernels/cuda/check.h"
#include "kernels/cuda/prefill_attention.cuh"

namespace trireme::cuda {

void launch_prefill_attention(const PrefillAttention& args, cudaStream_t stream) {
  if (args.tile_count == 0) return;
  if (!prefill_attention_supports(args.kv.head_dim, args.kv.block_size)) {
    fail_internal("prefill attention: unsupported head size or block size");
  }
  if (prefill_hopper_supports(args)) {
    launch_prefill_hopper(args, stream);
  } else {
    launch_prefill_mma(args, stream);
  }
}

}  // namespace trireme::cuda
