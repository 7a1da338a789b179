#include "runtime/profiles.h"

#include "base/error.h"

namespace trireme {
namespace {

SchedulerConfig cpu_profile(std::string_view name) {
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
    fail(ErrorCode::kInvalidArgument,
         "profile: '{}' is unknown; known: latency, balanced, throughput", name);
  }
  return config;
}

}  // namespace

SchedulerConfig profile(std::string_view name, bool gpu) {
  SchedulerConfig config = cpu_profile(name);
  if (!gpu) return config;
  if (name == "latency") {
    config.token_budget = 1024;
    config.max_chunk = 512;
    config.max_rows = 64;
    config.max_running = 64;
  } else if (name == "throughput") {
    config.token_budget = 8192;
    config.max_chunk = 8192;
  } else {
    config.token_budget = 4096;
    config.max_chunk = 2048;
    config.max_rows = 256;
    config.max_running = 256;
    config.max_queue = 2048;
  }
  return config;
}

}  // namespace trireme
