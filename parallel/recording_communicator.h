// A communicator whose calls are recorded as spans.
#pragma once

#include <memory>

#include "base/spans.h"
#include "parallel/communicator.h"

namespace trireme {

// Passes every call on to `inner`; `spans` must outlive it. probe() counts as waiting, and only
// where it may wait. What is split from it is not recorded.
std::unique_ptr<Communicator> make_recording_communicator(std::unique_ptr<Communicator> inner,
                                                          SpanRecorder& spans, SpanLink link);

}  // namespace trireme
