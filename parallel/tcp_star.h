// TCP connections from every rank to rank 0, beside MPI. The addresses and a per-run secret travel
// over `control` at start; whoever connects without the secret is sent away.
#pragma once

#include <vector>

#include "parallel/communicator.h"
#include "parallel/socket.h"

namespace trireme {

// On rank 0 one socket per rank (none for itself); elsewhere one, to rank 0. All with TCP_NODELAY.
using TcpStar = std::vector<Socket>;

// Collective over `control`: `channels` stars. Throws kUnavailable, naming the ranks or addresses,
// after 30 s. A world of one has no sockets.
std::vector<TcpStar> connect_tcp_stars(Communicator& control, int channels);

}  // namespace trireme
