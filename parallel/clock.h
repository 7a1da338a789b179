// One clock for all ranks: rank 0's steady clock.
#pragma once

#include <cstdint>

#include "parallel/communicator.h"

namespace trireme {

// How this rank's steady clock stands to rank 0's, measured at its time `at`.
struct ClockOffset {
  int64_t at = 0;      // ns of this rank's clock
  int64_t offset = 0;  // ns to add to this rank's clock
  int64_t error = 0;   // ns: the offset is off by no more (half of the quickest answer's time)
};

// Collective over `control`: rank 0 answers each rank in turn, the quickest answer counts. Clocks
// that may be the same one (those of a host are) are taken for that.
ClockOffset align_clock(Communicator& control);

// A time of this rank's clock on rank 0's, between two measurements: clocks drift.
int64_t on_first_rank(int64_t time, const ClockOffset& early, const ClockOffset& late);

}  // namespace trireme
