// A world of threads for a test.
#pragma once

#include <functional>

#include "parallel/communicator.h"

namespace trireme {

// Calls body once per rank, each on a thread of its own, and waits for all. A rank that throws
// aborts the others and fails the test.
void run_ranks(int size, const std::function<void(Communicator&)>& body);

}  // namespace trireme
