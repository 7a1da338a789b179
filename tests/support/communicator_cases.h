// What every Communicator must do, whatever carries its bytes: one body for threads and for MPI.
// Each case is called on all ranks of the communicator; it leaves nothing behind.
#pragma once

#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace trireme {

struct CommunicatorCase {
  std::string name;
  void (*run)(Communicator&);
};

std::vector<CommunicatorCase> collective_cases();
std::vector<CommunicatorCase> point_to_point_cases();

// `rounds` all-reduces of random lengths in [0, most], compared bit for bit with sums in rank
// order.
void check_random_all_reduces(Communicator& ranks, int rounds, size_t most, uint64_t seed);

// A number in [-1, 1) with a full mantissa, so that the order of a sum shows.
float test_value(uint64_t seed, int rank, size_t i);

}  // namespace trireme
