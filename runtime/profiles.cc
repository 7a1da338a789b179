#include "runtime/profiles.h"

#include "base/error.h"

namespace trireme {
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
    fail(ErrorCode::kInvalidArgument,
         "profile: '{}' is unknown; known: latency, balanced, throughput", name);
  }
  return config;
}

}  // namespace trireme
