// Collectives out of messages, for groups that span hosts (and hosts with too little shared
// memory). No MPI collective is used: none of them has a deadline or adds in a fixed order.
#pragma once

#include <span>

#include "base/buffer.h"
#include "parallel/mpi_link.h"

namespace trireme {

class MpiExchange {
 public:
  explicit MpiExchange(std::unique_ptr<MpiLink> link) : link_(std::move(link)) {}
  ~MpiExchange();

  MpiLink& link() { return *link_; }

  void all_reduce_sum(std::span<float> data);
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out);
  void broadcast(std::span<std::byte> data, int root);
  void barrier();

  // As Communicator::set_agreement: a part of every message's tag.
  void set_agreement(uint64_t value) { agreement_ = static_cast<int>(value & 0xfff); }

 private:
  enum class Kind : int { kAllReduce = 1, kAllGather, kBroadcast, kBarrier };
  // Messages of different operations never meet: ranks that are in different ones wait for each
  // other, and the watchdog names them.
  int tag(Kind kind) const { return static_cast<int>(kind) | agreement_ << 3; }
  std::byte* scratch(size_t bytes);
  void begin(const char* operation);
  void finish(const char* operation, size_t bytes);
  void reduce_whole(std::span<float> data);
  void reduce_parts(std::span<float> data);
  void gather_chunk(Kind kind, const char* operation, std::span<const std::byte> in, std::byte* out,
                    size_t stride);

  std::unique_ptr<MpiLink> link_;
  Buffer scratch_;
  int agreement_ = 0;
  std::string broken_;  // why no further collective can be in step
};

}  // namespace trireme
