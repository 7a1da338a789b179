// Which types an instance computes and caches in, from its options and its model's files.
#pragma once

#include "kernels/backend.h"
#include "runtime/instance.h"
#include "runtime/model/weight_source.h"

namespace trireme {

// Of a GPU's weights and activations: as asked for, else f16 for files whose matrices are all F16,
// of which it keeps all bits (not where the architecture's activations exceed its range), else bf16.
// Throws kInvalidArgument, also for a choice on a CPU and for a GPU that is to be deterministic.
DType element_of(const InstanceOptions& options, const WeightSource& source, bool gpu);

// Of the KV cache.
DType kv_dtype_of(const InstanceOptions& options, const WeightSource& source,
                  const Backend& backend, bool gpu);

}  // namespace trireme
