// Which kernel table a machine can run.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/ops.h"

namespace trireme::cpu {

bool machine_has(CpuIsa isa);

// Throws kInvalidArgument if this machine lacks `isa`.
const Ops& ops_of(CpuIsa isa);

// Whether one row of 8-bit products, which waits for memory alone, fetches its weights ahead by
// instructions. It is 1.0 to 1.3 times as fast so on Zen 3, 1.3 to 1.5 times on Sapphire Rapids
// (blocks of 32; longer ones were not measured); on Zen 4 prefetches that wait hold up the loads
// behind them (0.8 times), so not on AMD's processors with AVX-512. TRIREME_CPU_PREFETCH=0|1
// decides otherwise. Results are the same.
bool fetches_ahead();

}  // namespace trireme::cpu
