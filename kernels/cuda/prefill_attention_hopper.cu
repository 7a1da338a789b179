#include "kernels/cuda/prefill_attention.cuh"

namespace trireme::cuda {

bool prefill_hopper_supports(const PrefillAttention&) { return false; }
void launch_prefill_hopper(const PrefillAttention& args, cudaStream_t stream) {
  launch_prefill_mma(args, stream);
}

}  // namespace trireme::cuda
