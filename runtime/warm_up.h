// Steps of made-up rows before the first request. On a device they load kernels, choose the
// library's algorithms, let scratch grow to its largest and record graphs: what would otherwise
// happen in the middle of a step, where it takes long and must not wait for the device while other
// ranks' kernels wait on it. They also show how much memory all that takes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "parallel/communicator.h"
#include "runtime/scheduler.h"
#include "runtime/worker.h"

namespace trireme {

// Epoch of warm-ups, and what their steps are numbered from: an engine counts to neither.
inline constexpr uint64_t kWarmUpStep = uint64_t{1} << 63;

struct WarmUpSizes {
  int32_t max_tokens = 0;  // of a step
  int32_t max_chunk = 0;   // of one row
  int32_t slots = 0;
  int32_t block_size = 0;
  size_t kv_groups = 1;
  int32_t vocab = 0;
};

// The largest that these allow.
WarmUpSizes warm_up_sizes(const SchedulerConfig& scheduler, const KvPoolConfig& pool,
                          int64_t vocab);

// Collective over the world: all ranks make the same steps, but no stage waits for another. Every
// row's KV goes to block 0 of the cache.
// The largest prefill, the largest decode step, and sampling of every kind.
void warm_up_largest(Worker& worker, Backend& backend, const WarmUpSizes& sizes);
// Decode steps and prefills of all sizes that are told apart.
void warm_up_all_sizes(Worker& worker, Backend& backend, const WarmUpSizes& sizes);

// Measures from how many tokens on a prefill is faster in two parts, and cut where, and has the
// decoder do so: the same on all tensor ranks of the stage, which are `host`'s, in host memory. A
// few layers of each size are measured. Nothing to do where the decoder's parts are not open.
void tune_prefill_parts(Worker& worker, Backend& backend, const WarmUpSizes& sizes,
                        Communicator& host);

}  // namespace trireme
