// What the prefill attention kernels share: the tile they agree on with plan_prefill(), and the
// launchers that launch_prefill_attention() chooses from.
#pragma once

#include "kernels/cuda/attention.h"

namespace trireme::cuda {

// Queries a PrefillTile stands for, whatever the head size and the kernel.
inline constexpr int kPrefillTileRows = 128;

// mma.sync, compute capability 8.0 and later: every shape that prefill_attention_supports().
void launch_prefill_mma(const PrefillAttention& args, cudaStream_t stream);

// TMA and wgmma, compute capability 9.0 alone.
bool prefill_hopper_supports(const PrefillAttention& args);
void launch_prefill_hopper(const PrefillAttention& args, cudaStream_t stream);

}  // namespace trireme::cuda
