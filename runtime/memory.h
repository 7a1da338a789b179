// How much memory a process of this host may still take, and how many cores it may use.
#pragma once

#include <cstdint>
#include <string>

namespace trireme {

struct MemoryLimits {
  // For all processes of this host (or container) together: the least of MemAvailable, the free
  // part of every cgroup above this process (v1 or v2; reclaimable page cache counts as free) and
  // TRIREME_MEMORY_LIMIT (bytes; for tests and for leaving room).
  int64_t host = 0;
  std::string host_source;  // which of them, for messages
  // For this process alone: what RLIMIT_AS leaves of its address space; INT64_MAX without limit.
  int64_t process = 0;
};

// `root` is put before /proc and /sys, for tests. What cannot be read does not limit.
MemoryLimits memory_limits(const std::string& root = "");

// Cores that this process may run on: its affinity, and the cgroup's CPU quota. At least 1.
struct CoreLimits {
  int cores = 1;
  bool bound = false;  // to a part of the machine, as launchers bind ranks: not to be shared
};
CoreLimits core_limits(const std::string& root = "");

// "1.25 GiB".
std::string format_bytes(int64_t bytes);

}  // namespace trireme
