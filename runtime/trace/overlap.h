// What a timeline says of communication: how much there was, how much of it was exposed, and for
// how long a stage had nothing to do.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/trace/timeline.h"

namespace trireme {

// Seconds per step, means over the tensor ranks of a stage. Compute and exposed communication and
// idle time make up `step`.
struct StageOverlap {
  int stage = 0;
  double step = 0;           // from one step's begin to the next one's
  double compute = 0;
  double communication = 0;  // done: while something was under way, computing or not
  double exposed = 0;        // of it, while this rank computed nothing
  double idle = 0;
  double bubble() const { return step > 0 ? idle / step : 0; }
};

// Over the steps [first, last): from the begin of `first` to the begin of `last`, which must be in
// the record of every rank; else throws kInvalidArgument.
std::vector<StageOverlap> measure_overlap(const std::vector<RankRows>& rows, uint64_t first,
                                          uint64_t last);

}  // namespace trireme
