// Where idle ranks sleep. One TCP connection per rank to rank 0; a blocked Open MPI rank would
// spin on a core, a rank blocked here uses none and wakes as fast as the kernel lets it. The
// watchdog has connections of its own, made in the same way (tcp_star.h).
#pragma once

#include <chrono>
#include <memory>

#include "parallel/communicator.h"
#include "parallel/tcp_star.h"

namespace trireme {

class Doorbell {
 public:
  virtual ~Doorbell() = default;

  // Rank 0: wakes every other rank. One ring wakes one sleep(), also if it comes first.
  virtual void ring() = 0;
  // Other ranks: blocks until rung. Throws kUnavailable when rank 0 is gone.
  virtual void sleep() = 0;
};

// Collective over `control`. For a world of one it does nothing. TCP unless `threads`
// (ranks that are threads of one process still use it: there is one implementation).
std::unique_ptr<Doorbell> make_doorbell(Communicator& control);
// The same over connections that are there.
std::unique_ptr<Doorbell> make_doorbell(int rank, TcpStar star);

}  // namespace trireme
