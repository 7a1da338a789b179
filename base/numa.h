// Which memory node each compute thread stays on. Weights lie where the thread that multiplies by
// them first touched them, which helps only as long as it runs there.
#pragma once

#include <sched.h>

#include <string>
#include <vector>

namespace trireme {

// The processors of every memory node that this thread may run on; nodes without any are left out.
// Empty where the kernel does not tell. `root` is put before /sys, for tests.
std::vector<cpu_set_t> numa_nodes(const std::string& root = "");

// For threads [first, first + threads) of `total` that share the nodes, in order and by their
// numbers of processors: the processors of each one's node. Empty for less than two nodes.
std::vector<cpu_set_t> thread_places(const std::vector<cpu_set_t>& nodes, int threads, int first,
                                     int total);

}  // namespace trireme
