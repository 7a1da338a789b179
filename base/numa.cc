#include "base/numa.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>

namespace trireme {
namespace {

// "0-3,8,10-11"; what cannot be read ends it.
cpu_set_t parse_cpu_list(const std::string& text) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    int first = 0;
    auto [next, error] = std::from_chars(at, end, first);
    if (error != std::errc{}) break;
    int last = first;
    if (next < end && *next == '-') {
      const auto result = std::from_chars(next + 1, end, last);
      if (result.ec != std::errc{}) break;
      next = result.ptr;
    }
    for (int cpu = std::max(first, 0); cpu <= std::min(last, CPU_SETSIZE - 1); ++cpu) {
      CPU_SET(cpu, &set);
    }
    if (next == end || *next != ',') break;
    at = next + 1;
  }
  return set;
}

}  // namespace

std::vector<cpu_set_t> numa_nodes(const std::string& root) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return {};  // over 1024 processors
  std::vector<std::pair<int, cpu_set_t>> numbered;
  std::error_code error;
  const std::filesystem::directory_iterator folder(root + "/sys/devices/system/node", error);
  if (error) return {};
  for (const auto& entry : folder) {
    const std::string name = entry.path().filename().string();
    int number = 0;
    if (!name.starts_with("node")) continue;
    const auto [end, bad] = std::from_chars(name.data() + 4, name.data() + name.size(), number);
    if (bad != std::errc{} || end != name.data() + name.size()) continue;
    std::ifstream file(entry.path() / "cpulist");
    std::string text;
    std::getline(file, text);
    cpu_set_t set = parse_cpu_list(text);
    CPU_AND(&set, &set, &allowed);
    if (CPU_COUNT(&set) > 0) numbered.emplace_back(number, set);
  }
  std::sort(numbered.begin(), numbered.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<cpu_set_t> nodes;
  for (const auto& [number, set] : numbered) nodes.push_back(set);
  return nodes;
}

std::vector<cpu_set_t> thread_places(const std::vector<cpu_set_t>& nodes, int threads, int first,
                                     int total) {
  if (nodes.size() < 2) return {};
  double cpus = 0;
  for (const cpu_set_t& node : nodes) cpus += CPU_COUNT(&node);
  std::vector<cpu_set_t> places;
  for (int thread = first; thread < first + threads; ++thread) {
    const double middle = (thread + 0.5) * cpus / total;
    size_t node = 0;
    for (double through = CPU_COUNT(&nodes[0]); through <= middle && node + 1 < nodes.size();) {
      through += CPU_COUNT(&nodes[++node]);
    }
    places.push_back(nodes[node]);
  }
  return places;
}

}  // namespace trireme
