// How kernels of several ranks exchange small vectors through memory that each can write
// (base/peer_buffers.h).
//
// A rank pushes packets of 16 bytes into its peers' inboxes: 8 bytes of data and, beside each half,
// the number of the exchange, so that a packet is its own notice of arrival and nothing is cleared.
// A block works on one lane, which counts its exchanges in memory: a recorded graph can be
// replayed. Each lane has two slots that take turns. That is enough: who is in exchange n + 2 has
// received from all peers in n + 1, so they have read all of exchange n.
//
// All ranks make the same exchanges of a lane in the same order. One that waits for a peer looks at
// the stop flag now and then, and ends with whatever it has once that is raised.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "base/peer_buffers.h"

namespace trireme::cuda {

struct PeerLanes {
  int rank = 0;
  int size = 1;
  int32_t lanes = 0;
  int32_t packets = 0;  // of one lane from one source; a multiple of 64
  // Rank r's: [slot][lane][source, and behind them one for sums][packets].
  uint4* inbox[PeerBuffers::kMostRanks] = {};
  uint32_t* epochs = nullptr;  // [lanes] exchanges made; this rank's own
  const uint32_t* stop = nullptr;
};

// The most bytes that one exchange moves from a rank to another.
inline constexpr int64_t kMostPeerBytes = 1 << 20;

// A lane takes one row of `row_bytes`.
constexpr int64_t lane_bytes(int64_t row_bytes) {
  return std::max<int64_t>((row_bytes + 511) / 512 * 512, 4096);
}
constexpr int64_t lane_count(int64_t row_bytes) {
  return std::max<int64_t>(kMostPeerBytes / lane_bytes(row_bytes), 1);
}
constexpr int64_t epoch_bytes(int64_t row_bytes) {
  return (lane_count(row_bytes) * 4 + 255) / 256 * 256;
}

constexpr size_t peer_lanes_bytes(int ranks, int64_t row_bytes) {
  return static_cast<size_t>(epoch_bytes(row_bytes) +
                             2 * lane_count(row_bytes) * (ranks + 1) * lane_bytes(row_bytes) * 2);
}

inline PeerLanes make_peer_lanes(const PeerBuffers& peers, int64_t row_bytes) {
  PeerLanes lanes;
  lanes.rank = peers.rank;
  lanes.size = peers.size;
  lanes.lanes = static_cast<int32_t>(lane_count(row_bytes));
  lanes.packets = static_cast<int32_t>(lane_bytes(row_bytes) / 8);
  for (int rank = 0; rank < peers.size; ++rank) {
    lanes.inbox[rank] =
        reinterpret_cast<uint4*>(peers.data[static_cast<size_t>(rank)] + epoch_bytes(row_bytes));
  }
  lanes.epochs = reinterpret_cast<uint32_t*>(peers.data[static_cast<size_t>(peers.rank)]);
  lanes.stop = peers.stop;
  return lanes;
}

}  // namespace trireme::cuda
