// The communicator of device memory. It is made over NCCL, in a module of its own
// (libtrireme_nccl.so, parallel/nccl*) that is loaded only where ranks have GPUs, so that the
// program starts where neither CUDA nor NCCL is installed.
//
// What differs from host communicators:
// - Data pointers are device memory and calls return once the operation is queued on `stream`;
//   memory must stay as it is until the stream has passed it. wait() is where the host waits.
// - all_reduce_sum takes f32, f16 and bf16, at 16-byte aligned addresses. Every rank gets the same
// bits, but in which order the
//   terms are added depends on the number of elements and on where the data lies.
// - Messages carry no tags: those of two ranks arrive in the order in which they were sent, and a
//   send holds its stream until the receiver has come to it. An exchange in both directions takes
//   two streams. No rank sends to itself, and probe() is not for device memory (kUnimplemented).
// - Operations of one communicator are queued on one stream at a time; who changes it orders the
//   two by an event. barrier() has a stream of its own: it is for the start and the end.
// - all_reduce_sum, all_gather, broadcast, send and recv may be captured into a graph, in the same
//   order on all ranks. Graphs must be destroyed before the communicator: NCCL frees nothing that
//   they use. After an abort or a missed deadline they are useless.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/buffer.h"
#include "base/peer_buffers.h"
#include "parallel/communicator.h"
#include "parallel/topology.h"

namespace trireme {

class DeviceCommunicator : public Communicator {
 public:
  // Zeroed device memory for all-reduces, mapped by all ranks: small sums in it (of a decode step)
  // take about two thirds of the time. Collective, with equal sizes; no graph captured with
  // it may be replayed after it. Plain device memory where the GPUs cannot map each other's.
  virtual Buffer allocate_symmetric(size_t bytes) = 0;

  // Zeroed device memory that kernels of all ranks write to (base/peer_buffers.h). Collective;
  // `host` is the host's communicator of the same ranks. Nothing where the GPUs cannot map each
  // other's memory: on all ranks alike, and `why` says so. What waits in a kernel ends, with
  // whatever it has, when this communicator is aborted.
  virtual std::optional<PeerBuffers> map_peers(Communicator& host, size_t bytes,
                                               std::string& why) = 0;

  // What sums between these ranks' GPUs cost depends on: GPU, driver, library, number of ranks.
  virtual std::string identity() const = 0;

  // split() with the type that it has. `blocks`: thread blocks that an operation of the new
  // communicator uses at most; 0: as many as the library likes.
  virtual std::unique_ptr<DeviceCommunicator> split_device(int color, const std::string& name,
                                                           int blocks = 0) = 0;
  std::unique_ptr<Communicator> split(int color, const std::string& name) final {
    return split_device(color, name);
  }

  // Returns once the device has done everything that is queued on `stream`. Throws
  // kDeadlineExceeded naming this communicator's latest operation, or what check() throws; what
  // still waits for a peer on the device is then ended, and the communicator with it.
  virtual void wait(StreamHandle stream) = 0;
};

// Collective over `group`, which carries the start and is asked for aborts later; it must outlive
// the communicator. `device`: the index of this rank's GPU among those it sees. Throws on all ranks
// alike: kUnavailable if the module or NCCL is missing on one of them, kInvalidArgument if two of
// them would share a GPU.
std::unique_ptr<DeviceCommunicator> make_nccl_communicator(Communicator& group, int device,
                                                           const std::string& name);

// Collective over `group`: what joins this rank's GPU to that of each rank. kHost where it is not
// among those that this process sees, or where the module cannot be loaded.
std::vector<LinkKind> device_links(Communicator& group, int device);

}  // namespace trireme
