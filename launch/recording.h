// What was recorded while an OfflineSession ran, brought together on rank 0.
#pragma once

#include <vector>

#include "launch/command.h"
#include "runtime/trace/timeline.h"

namespace trireme {

// Made on all ranks before the session runs, finished on all after it.
class Recording {
 public:
  // `device_steps`: the steps of a device that are stamped, about; none if 0.
  explicit Recording(OfflineSession& session, uint64_t device_steps = 0);
  // The tracks of all ranks on rank 0, nothing elsewhere.
  std::vector<RankTrack> finish();

 private:
  OfflineSession& session_;
  ClockOffset early_;
};

}  // namespace trireme
