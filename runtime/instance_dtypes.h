// Which types an instance computes and caches in, from its options and its model's files.
#pragma once

#include "kernels/backend.h"
#include "runtime/instance.h"
#include "runtime/model/weight_source.h"

namespace trireme {

// Of a GPU's weights and activations: bf16, or f16, with which files of f16 keep all bits. Throws
// kInvalidArgument, also for a choice on a CPU.
DType element_of(const InstanceOptions& options, bool gpu);

// Of the KV cache.
DType kv_dtype_of(const InstanceOptions& options, const WeightSource& source,
                  const Backend& backend, bool gpu);

}  // namespace trireme
