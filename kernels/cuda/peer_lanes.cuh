// One lane of peer_lanes.h within a block. What is exchanged is vectors of 16 bytes, two packets
// each; the packets of a warp's vectors are laid out so that its stores are contiguous.
#pragma once

#include "kernels/cuda/peer_lanes.h"

namespace trireme::cuda {

__device__ inline void store_packet(uint4* to, uint32_t low, uint32_t high, uint32_t epoch) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(to), "r"(low),
               "r"(epoch), "r"(high)
               : "memory");
}

__device__ inline uint4 load_packet(const uint4* from) {
  uint4 packet;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(packet.x), "=r"(packet.y), "=r"(packet.z), "=r"(packet.w)
               : "l"(from)
               : "memory");
  return packet;
}

class Lane {
 public:
  // After wait_for_previous_kernel(): the last exchange's number is in memory.
  __device__ Lane(const PeerLanes& lanes, int lane)
      : lanes_(lanes), lane_(lane), epoch_(__ldcg(lanes.epochs + lane) + 1) {
    first_ = (int64_t{epoch_ & 1} * lanes.lanes + lane) * (lanes.size + 1) * lanes.packets;
  }

  // Vector i to every peer, as this rank's.
  __device__ void push(int i, uint4 vector) const {
    for (int rank = 0; rank < lanes_.size; ++rank) {
      if (rank != lanes_.rank) store(rank, lanes_.rank, i, vector);
    }
  }
  __device__ void push_to(int rank, int i, uint4 vector) const {
    store(rank, lanes_.rank, i, vector);
  }
  // Vector i to every peer, as a sum.
  __device__ void push_sum(int i, uint4 vector) const {
    for (int rank = 0; rank < lanes_.size; ++rank) {
      if (rank != lanes_.rank) store(rank, lanes_.size, i, vector);
    }
  }

  // Waits for vector i of all peers; vectors[rank] of this rank is left as it is.
  template <int kRanks>
  __device__ void receive(int i, uint4 (&vectors)[kRanks]) const {
    const uint4* inbox = lanes_.inbox[lanes_.rank] + first_ + packet_of(i);
    uint4 low[kRanks], high[kRanks];
    bool arrived = false;
    for (uint32_t round = 1; !arrived; ++round) {
      arrived = true;
#pragma unroll
      for (int rank = 0; rank < kRanks; ++rank) {
        if (rank >= lanes_.size || rank == lanes_.rank) continue;
        low[rank] = load_packet(inbox + int64_t{rank} * lanes_.packets);
        high[rank] = load_packet(inbox + int64_t{rank} * lanes_.packets + 32);
      }
#pragma unroll
      for (int rank = 0; rank < kRanks; ++rank) {
        if (rank >= lanes_.size || rank == lanes_.rank) continue;
        arrived = arrived && is_whole(low[rank]) && is_whole(high[rank]);
      }
      if (stopped(round)) break;
    }
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      if (rank >= lanes_.size || rank == lanes_.rank) continue;
      vectors[rank] = make_uint4(low[rank].x, low[rank].z, high[rank].x, high[rank].z);
    }
  }

  // Waits for vector i as a sum.
  __device__ uint4 receive_sum(int i) const {
    const uint4* inbox =
        lanes_.inbox[lanes_.rank] + first_ + int64_t{lanes_.size} * lanes_.packets + packet_of(i);
    uint4 low, high;
    bool arrived = false;
    for (uint32_t round = 1; !arrived; ++round) {
      low = load_packet(inbox);
      high = load_packet(inbox + 32);
      arrived = is_whole(low) && is_whole(high);
      if (stopped(round)) break;
    }
    return make_uint4(low.x, low.z, high.x, high.z);
  }

  // Once all threads of the block have received: the exchange is counted.
  __device__ void finish() const {
    __syncthreads();
    if (threadIdx.x == 0) lanes_.epochs[lane_] = epoch_;
  }

 private:
  __device__ static int64_t packet_of(int i) { return int64_t{i & ~31} * 2 + (i & 31); }
  __device__ void store(int rank, int source, int i, uint4 vector) const {
    uint4* to = lanes_.inbox[rank] + first_ + int64_t{source} * lanes_.packets + packet_of(i);
    store_packet(to, vector.x, vector.y, epoch_);
    store_packet(to + 32, vector.z, vector.w, epoch_);
  }
  __device__ bool is_whole(const uint4& packet) const {
    return packet.y == epoch_ && packet.w == epoch_;
  }
  // A look over PCIe once in some milliseconds.
  __device__ bool stopped(uint32_t round) const {
    return round % 4096 == 0 && *static_cast<const volatile uint32_t*>(lanes_.stop) != 0;
  }

  const PeerLanes& lanes_;
  int lane_;
  uint32_t epoch_;
  int64_t first_ = 0;  // packet of the lane's slot in every inbox
};

}  // namespace trireme::cuda
