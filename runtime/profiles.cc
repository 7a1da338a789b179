#include "runtime/profiles.h"

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace trireme {
namespace {

constexpr std::array<std::string_view, 3> kProfiles = {"latency", "balanced", "throughput"};

constexpr std::array<std::pair<std::string_view, int32_t SchedulerConfig::*>, 7> kLimits = {{
    {"token_budget", &SchedulerConfig::token_budget},
    {"max_chunk", &SchedulerConfig::max_chunk},
    {"max_rows", &SchedulerConfig::max_rows},
    {"max_running", &SchedulerConfig::max_running},
    {"max_queue", &SchedulerConfig::max_queue},
    {"max_context", &SchedulerConfig::max_context},
    {"steps_in_flight", &SchedulerConfig::steps_in_flight},
}};

std::string list_of(std::span<const std::string_view> names) {
  std::string list;
  for (const std::string_view name : names) {
    if (!list.empty()) list += ", ";
    list += name;
  }
  return list;
}

}  // namespace

std::span<const std::string_view> profile_names() { return kProfiles; }

SchedulerConfig profile(std::string_view name) {
  SchedulerConfig config;
  if (name == "latency") {
    config.token_budget = 192;  // a step stays short, so that a prefill delays no decode row much
    config.max_chunk = 128;
    config.max_rows = 32;
    config.max_running = 32;
    config.max_queue = 256;
  } else if (name == "throughput") {
    config.token_budget = 2048;
    config.max_chunk = 1024;
    config.max_rows = 1024;
    config.max_running = 1024;
    config.max_queue = 8192;
  } else if (name != "balanced") {
    fail(ErrorCode::kInvalidArgument, "profile: '{}' is unknown; known: {}", name,
         list_of(kProfiles));
  }
  return config;
}

void set_limit(SchedulerConfig& config, std::string_view name, int32_t value) {
  for (const auto& [known, field] : kLimits) {
    if (known != name) continue;
    config.*field = value;
    return;
  }
  std::vector<std::string_view> known;
  for (const auto& limit : kLimits) known.push_back(limit.first);
  fail(ErrorCode::kInvalidArgument, "scheduler limit: '{}' is unknown; known: {}", name,
       list_of(known));
}

}  // namespace trireme
