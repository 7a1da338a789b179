// Named settings of the scheduler: where to stand between time to first token and throughput.
#pragma once

#include <string_view>

#include "runtime/scheduler.h"

namespace trireme {

// "latency": small steps, few sequences: each answer comes fast.
// "balanced": the default.
// "throughput": large steps, many sequences: most tokens per second.
// Throws kInvalidArgument with the known names.
// `gpu`: with the sizes of a GPU, which needs hundreds of tokens a step to be busy.
SchedulerConfig profile(std::string_view name, bool gpu = false);

}  // namespace trireme
