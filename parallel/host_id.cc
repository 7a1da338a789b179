#include "parallel/host_id.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

namespace trireme {

HostId host_id() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  char net_namespace[40] = {};
  if (readlink("/proc/self/ns/net", net_namespace, sizeof net_namespace - 1) < 0 || boot.empty()) {
    char name[64] = {};  // no /proc: the host's name must do
    gethostname(name, sizeof name - 1);
    boot = name;
  }
  // Ranks that are told to be of different nodes share nothing either.
  const char* node = std::getenv(kNodeVariable);
  const std::string text =
      fmt::format("{} {} {}", boot, net_namespace, node == nullptr ? "" : node);
  HostId id{};
  std::copy_n(text.data(), std::min(text.size(), id.size() - 1), id.data());
  return id;
}

std::vector<HostId> gather_host_ids(Communicator& communicator) {
  const HostId mine = host_id();
  std::vector<HostId> all(static_cast<size_t>(communicator.size()));
  communicator.all_gather(std::as_bytes(std::span(&mine, 1)),
                          std::as_writable_bytes(std::span(all)));
  return all;
}

}  // namespace trireme
