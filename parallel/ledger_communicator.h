// Communicators whose operations are written into the rank's ledger.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/device_communicator.h"
#include "parallel/ledger.h"

namespace trireme {

// Passes every call on to `inner`; `ranks`: the group's, numbered as in the world. The ledger must
// outlive it. What is split from it is not recorded, and a probe that does not wait neither. Of a
// device's operations is recorded that they were queued, or captured into a graph; whoever replays
// that tells the ledger (Ledger::play).
std::unique_ptr<Communicator> make_ledger_communicator(std::unique_ptr<Communicator> inner,
                                                       Ledger& ledger, std::vector<int32_t> ranks);
std::unique_ptr<DeviceCommunicator> make_ledger_communicator(
    std::unique_ptr<DeviceCommunicator> inner, Ledger& ledger, std::vector<int32_t> ranks);

}  // namespace trireme
