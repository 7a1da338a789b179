// Which ranks can reach each other without a network.
#pragma once

#include <array>

#include "parallel/communicator.h"

namespace trireme {

// For tests: ranks in whose environment this variable differs count as ranks of different hosts.
inline constexpr char kNodeVariable[] = "TRIREME_NODE";

// Equal on two ranks exactly if 127.0.0.1 is the same interface for both: the kernel's boot and the
// network namespace. Zero-terminated.
using HostId = std::array<char, 96>;
HostId host_id();

// Collective: every rank's host id, by rank.
std::vector<HostId> gather_host_ids(Communicator& communicator);

}  // namespace trireme
