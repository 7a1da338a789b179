// A device's stamps as spans of the steps.
#pragma once

#include <cstdint>
#include <vector>

#include "base/spans.h"
#include "kernels/streams.h"

namespace trireme {

// `last_step`: the step whose layers were stamped last; steps count by one and each has layers.
// `from` and `to`: the world's rank that activations come from (-1: none), and those they go to.
// Only the steps of `window`. A part that nothing ends is left out.
std::vector<Span> device_spans(const DeviceTimes& times, uint64_t last_step,
                               const StepWindow& window, int from, const std::vector<int>& to);

// The share of its time in which the device computes nothing: of `steps` steps before `end`, each
// from the begin of its layers to the begin of the next one's. Throws kInvalidArgument if they are
// not all among the stamps.
double idle_share(const DeviceTimes& times, uint64_t last_step, uint64_t steps, uint64_t end);

}  // namespace trireme
