// Collectives and point-to-point messages among the ranks of one group.
//
// Implementations: single (a world of one), thread (N ranks as threads of one process, for tests),
// mpi (host memory), and nccl (device memory: device_communicator.h says what differs). Operations
// are ordered on a stream; host implementations have finished when the call returns and ignore the
// stream. All ranks of a group call the same collectives in the same order. Every wait has the
// communicator's deadline: past it the call throws kDeadlineExceeded naming the operation, its
// bytes and the peer. After abort() every pending and later call throws kAborted. Only the engine
// or worker thread of a rank calls these, except abort().
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace trireme {

// An ordered queue of device work; null for host memory.
struct StreamHandle {
  void* native = nullptr;
};

// How long probe() waits: not at all, as long as every other operation, or without a limit, as only
// an idle receiver may, to which nothing is owed.
enum class Wait : uint8_t { kNever, kDeadline, kForever };

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const std::string& name() const = 0;  // "control", "tp", …: for messages

  // data[i] = sum over ranks of data[i], `count` elements: identical bits on every rank. On host
  // memory float32 alone (else kUnimplemented), added in rank order, and the bits of an element do
  // not depend on how many elements travel with it.
  virtual void all_reduce_sum(void* data, int64_t count, DType dtype, StreamHandle stream = {}) = 0;
  void all_reduce_sum(std::span<float> data, StreamHandle stream = {}) {
    all_reduce_sum(data.data(), static_cast<int64_t>(data.size()), DType::kF32, stream);
  }

  // out holds size() * in.size() bytes: rank r's bytes at r * in.size(). in.size() equal on all.
  virtual void all_gather(std::span<const std::byte> in, std::span<std::byte> out,
                          StreamHandle stream = {}) = 0;

  virtual void broadcast(std::span<std::byte> data, int root, StreamHandle stream = {}) = 0;
  virtual void barrier() = 0;

  // Starts a send and returns: the bytes are copied or kept until they have left. Sends to one
  // peer with one tag arrive in order. At most a bounded number are pending; then it waits.
  virtual void send(std::span<const std::byte> data, int to, int tag, StreamHandle stream = {}) = 0;
  // Receives exactly data.size() bytes.
  virtual void recv(std::span<std::byte> data, int from, int tag, StreamHandle stream = {}) = 0;
  // For messages of unknown size: the size in bytes of the next message, or -1 if none is there
  // yet (only with Wait::kNever).
  virtual int64_t probe(int from, int tag, Wait wait) = 0;

  // A communicator of the ranks that pass the same color, ordered by rank. Collective.
  virtual std::unique_ptr<Communicator> split(int color, const std::string& name) = 0;

  // What the group's ranks must agree on from their next collective on, such as the hash of a plan;
  // at first 0. A collective of ranks that do not is refused, where ranks share memory or are
  // threads; between hosts it waits until its deadline (but for one pair of values in 4096). Device
  // communicators do not compare.
  virtual void set_agreement(uint64_t value) = 0;

  virtual void set_deadline(std::chrono::milliseconds limit) = 0;
  // From any thread.
  virtual void abort(const std::string& reason) = 0;
  // Throws what went wrong while nobody was inside a call: kAborted after an abort by this rank or,
  // where ranks share memory, by another. Moves along what was sent and has not left: who waits for
  // something else for long must call it, on the thread of the other calls. Cheap enough for that.
  virtual void check() = 0;
};

// The largest of the ranks' values, on all of them: of a time that all have measured, the slowest
// rank's. Collective; host memory.
double largest_of_ranks(Communicator& host, double mine);

// For implementations on host memory: the elements as floats. Throws kUnimplemented for other types
// and kInvalidArgument for a negative count.
std::span<float> host_floats(void* data, int64_t count, DType dtype, const std::string& name);

std::unique_ptr<Communicator> make_single_communicator(const std::string& name = "single");

// `size` communicators that talk among threads of this process; index i is rank i.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size,
                                                                     const std::string& name);

}  // namespace trireme
