// What a model needs of each rank's memory in a layout, and which layout would do with less.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/backend.h"
#include "parallel/layout.h"
#include "runtime/instance_memory.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/weight_source.h"
#include "runtime/scheduler.h"

namespace trireme {

// All that is settled before the memory is.
struct ServedModel {
  const WeightSource& source;
  const Backend& backend;
  const SchedulerConfig& scheduler;  // with the context that is wished for
  const KvGroups& groups;
  DType kv_dtype = DType::kF32;
  int block_size = 16;
  int32_t max_context = 0;  // that must fit; 0: so many as are worth serving
  int64_t kv_memory = 0;    // as in MemoryNeeds
};

// MemoryNeeds without `device` and `advice`.
MemoryNeeds memory_needs(const ServedModel& model, const ParallelLayout& layout, int rank);

// In words: the layout of the fewest ranks, up to 64, other than `current`, in which each rank's
// needs are within `available` bytes; eight ranks a host.
std::string fitting_layout(const ServedModel& model, const ModelShape& shape,
                           const ParallelLayout& current, int64_t available);

}  // namespace trireme
