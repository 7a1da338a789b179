// What one pipeline stage takes for a decode step by itself: the bound that a full pipeline is held
// against, rows of a micro-batch over the time of the slowest stage.
#pragma once

#include <cstdint>
#include <vector>

#include "launch/command.h"

namespace trireme {

// Seconds per step, the slowest tensor rank's, medians over the steps.
struct StageTimes {
  double alone = 0;  // the other stages at rest
  double together =
      0;  // all stages at once, each by itself: what they take from each other's memory
  // Of a stage's reductions over its tensor ranks: a step without them, and they without the rest.
  double without_reductions = 0;
  double reductions = 0;
};

// Tokens by which the sequences grow meanwhile.
int32_t stage_bench_positions(int32_t steps);

// Every stage computes decode rows at `context`, filled with real prompts before. Collective, after
// the session has run; the same answer on all ranks. Throws kInvalidArgument, on all ranks alike,
// if slots or KV blocks do not suffice.
std::vector<StageTimes> measure_stages(OfflineSession& session, int32_t rows, int32_t context,
                                       int32_t steps);

}  // namespace trireme
