#include "runtime/memory.h"

#include <fmt/core.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace trireme {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

std::optional<int64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end == text.data()) return std::nullopt;
  return static_cast<int64_t>(std::min<uint64_t>(value, kUnlimited));
}

std::optional<int64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  if (!(file >> word)) return std::nullopt;
  return parse_number(word);  // "max" is no number
}

// The value of `key` in a file of "key value" or "key: value kB" lines.
std::optional<int64_t> read_field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name, value;
    if (words >> name >> value && name == key) return parse_number(value);
  }
  return std::nullopt;
}

// Whether `name` is one of the comma-separated `names`.
bool lists(const std::string& names, const std::string& name) {
  std::istringstream words(names);
  std::string word;
  while (std::getline(words, word, ',')) {
    if (word == name) return true;
  }
  return false;
}

// The directories of this process's cgroup and of all above it, in one hierarchy.
std::vector<std::string> cgroup_directories(const std::string& root, const std::string& mount,
                                            const std::string& controller) {
  std::ifstream file(root + "/proc/self/cgroup");
  std::string line, path;
  while (std::getline(file, line)) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    const bool matches = controller.empty() ? names.empty() : lists(names, controller);
    if (matches) path = line.substr(second + 1);
  }
  std::vector<std::string> directories;
  while (path.size() > 1) {
    directories.push_back(root + mount + path);
    path.resize(path.rfind('/'));
  }
  directories.push_back(root + mount);
  return directories;
}

struct CgroupFiles {
  const char* mount;
  const char* controller;
  const char* limit;
  const char* usage;
  const char* reclaimable;
};
constexpr CgroupFiles kCgroups[] = {
    {"/sys/fs/cgroup", "", "memory.max", "memory.current", "inactive_file"},
    {"/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
     "total_inactive_file"},
};

int64_t cgroup_available(const std::string& root) {
  int64_t available = kUnlimited;
  for (const CgroupFiles& files : kCgroups) {
    for (const auto& directory : cgroup_directories(root, files.mount, files.controller)) {
      const auto limit = read_number(directory + "/" + files.limit);
      if (!limit || *limit >= (int64_t{1} << 60)) continue;  // v1 writes "none" as a huge number
      const int64_t used = read_number(directory + "/" + files.usage).value_or(0);
      const int64_t cache = read_field(directory + "/memory.stat", files.reclaimable).value_or(0);
      available =
          std::min(available, std::max<int64_t>(0, *limit - std::max<int64_t>(0, used - cache)));
    }
  }
  return available;
}

int64_t address_space_left(const std::string& root) {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnlimited;
  const int64_t pages = read_number(root + "/proc/self/statm").value_or(0);
  const int64_t used = pages * sysconf(_SC_PAGESIZE);
  return std::max<int64_t>(
      0, static_cast<int64_t>(std::min<uint64_t>(limit.rlim_cur, kUnlimited)) - used);
}

}  // namespace

MemoryLimits memory_limits(const std::string& root) {
  MemoryLimits limits;
  limits.host = kUnlimited;
  const auto lower = [&limits](int64_t bytes, const char* source) {
    if (bytes >= limits.host) return;
    limits.host = bytes;
    limits.host_source = source;
  };
  if (const auto free = read_field(root + "/proc/meminfo", "MemAvailable:")) {
    lower(*free * 1024, "MemAvailable");
  }
  lower(cgroup_available(root), "cgroup limit");
  if (const char* text = std::getenv("TRIREME_MEMORY_LIMIT"); text != nullptr && *text != '\0') {
    const auto bytes = parse_number(text);
    if (!bytes) {
      fail(ErrorCode::kInvalidArgument, "TRIREME_MEMORY_LIMIT: '{}' is not a number of bytes",
           text);
    }
    lower(*bytes, "TRIREME_MEMORY_LIMIT");
  }
  limits.process = address_space_left(root);
  return limits;
}

CoreLimits core_limits(const std::string& root) {
  CoreLimits limits;
  const auto online = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  limits.cores = std::max(1, online);
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    limits.cores = std::max(1, CPU_COUNT(&set));
    limits.bound = limits.cores < online;
  }
  int64_t quota_cores = kUnlimited;
  for (const auto& directory : cgroup_directories(root, "/sys/fs/cgroup", "")) {
    std::ifstream file(directory + "/cpu.max");
    std::string quota, period;
    if (!(file >> quota >> period)) continue;
    const auto allowed = parse_number(quota);
    const auto per = parse_number(period);
    if (!allowed || !per || *per == 0) continue;
    quota_cores = std::min(quota_cores, std::max<int64_t>(1, (*allowed + *per - 1) / *per));
  }
  if (quota_cores < limits.cores) limits = {static_cast<int>(quota_cores), false};
  return limits;
}

std::string format_bytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024.0 && unit + 1 < std::size(kUnits); ++unit) value /= 1024.0;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.2f} {}", value, kUnits[unit]);
}

}  // namespace trireme
