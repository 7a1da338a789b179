// Named settings of the scheduler: where to stand between time to first token and throughput.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "runtime/scheduler.h"

namespace trireme {

// "latency": small steps, few sequences: each answer comes fast.
// "balanced": the default.
// "throughput": large steps, many sequences: most tokens per second.
std::span<const std::string_view> profile_names();

// Throws kInvalidArgument with the known names.
SchedulerConfig profile(std::string_view name);

// Sets one limit by the name of its SchedulerConfig field. Throws kInvalidArgument with the known
// names. Whether the limits fit together is checked by validate().
void set_limit(SchedulerConfig& config, std::string_view name, int32_t value);

}  // namespace trireme
