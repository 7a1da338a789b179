// The largest steps that a scheduler may plan, run once after a start has loaded its weights: what
// they allocate (attention's and sampling's workspaces, recorded graphs, NCCL's buffers) is there
// when the free memory is divided, and algorithms are chosen before the first request.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/model/config.h"
#include "runtime/scheduler.h"
#include "runtime/step_plan.h"
#include "runtime/worker.h"

namespace trireme {

// Numbers of decode rows, rising, whose steps `backend` records: its sizes up to `most`, and `most`
// itself for the size that it is padded to.
std::vector<int32_t> recorded_sizes(const Backend& backend, int32_t most);

// In this order: prompts of the whole budget and of each smaller class of sizes; decode steps of
// the most rows, and of each of `recorded`, twice, so that the second one is recorded; and a step
// of each costly way to sample. All sequences live in block 0 of every KV group, which is
// overwritten with nonsense.
std::vector<StepPlan> largest_steps(const SchedulerConfig& config, const ModelConfig& model,
                                    size_t kv_groups, int32_t block_size,
                                    const std::vector<int32_t>& recorded);
// Sequences of the largest decode step.
int32_t most_decode_rows(const SchedulerConfig& config);

// On all ranks alike, before any other step. The plans are of epoch 0: the scheduler's first plan,
// of a later one, begins with empty slots.
void run_largest_steps(Worker& worker, const std::vector<StepPlan>& plans);

}  // namespace trireme
