// Which kernel table a machine can run.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/ops.h"

namespace trireme::cpu {

bool machine_has(CpuIsa isa);

// Throws kInvalidArgument if this machine lacks `isa`.
const Ops& ops_of(CpuIsa isa);

}  // namespace trireme::cpu
