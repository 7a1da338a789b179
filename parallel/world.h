// The ranks that serve one model together, and what connects them.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/spans.h"
#include "parallel/communicator.h"
#include "parallel/device_communicator.h"
#include "parallel/doorbell.h"
#include "parallel/layout.h"
#include "parallel/ledger.h"
#include "parallel/stage_edge.h"
#include "parallel/watchdog.h"

namespace trireme {

// Where this process stands before any layout is chosen. Ranks are numbered node by node, however
// the launcher has dealt them out; rank 0 is the launcher's. MPI is initialized only if the process
// was started by a launcher (mpirun, srun) or TRIREME_MPI=1; a plain start is a world of one.
class MpiEnvironment {
 public:
  // MPI_THREAD_SERIALIZED; throws kUnavailable if MPI cannot start.
  MpiEnvironment(int* argc, char*** argv);
  ~MpiEnvironment();  // MPI_Finalize, or MPI_Abort when the world was aborted
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  // Among the ranks that share this node's GPUs: the number of this rank's own.
  int local_rank() const { return local_rank_; }
  // How many ranks share this host's cores.
  int local_size() const { return local_size_; }
  // The lowest rank of this node.
  int node() const { return node_; }
  const std::string& host() const { return host_; }

  // The communicator of all ranks ("control"); single if there is no MPI.
  std::unique_ptr<Communicator> make_control() const;

  // Ends every rank of the job with `exit_code`, without waiting for any.
  [[noreturn]] static void abort(int exit_code);

 private:
  bool active_ = false;
  std::shared_ptr<class MpiProcess> process_;
  void find_nodes();

  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1, node_ = 0;
  std::string host_;
};

// One rank's view of the world. Built collectively from `control`; also for thread worlds in tests.
//
// `control` carries plans and results, `data` pipeline activations, `tp` the reductions of this
// rank's stage: three separate communicators, so that their messages can never meet. They carry
// host memory. Where ranks have GPUs, device_data and device_tp carry the same things between
// those, as do device_incoming and device_outgoing; the sampler's candidates stay on `tp`.
struct World {
  ParallelLayout layout;
  int rank = 0;
  // Every operation of the communicators below is written here; a group of one has none.
  std::unique_ptr<Ledger> ledger;
  std::unique_ptr<Communicator> control;
  std::unique_ptr<Communicator> data;
  std::unique_ptr<Communicator> tp;
  std::unique_ptr<Doorbell> doorbell;
  // Null on hosts without GPUs; device_data also with one stage, device_tp with one tensor rank.
  // device_data is all ranks; activations travel in groups of two neighbouring stages, null where
  // there is no such stage, so that each way has a stream of its own.
  std::unique_ptr<DeviceCommunicator> device_data;
  std::unique_ptr<DeviceCommunicator> device_tp;
  std::unique_ptr<DeviceCommunicator> device_incoming;
  std::unique_ptr<DeviceCommunicator> device_outgoing;
  // The first stage's ranks, then the last one's, for what was sampled; null elsewhere.
  std::unique_ptr<DeviceCommunicator> device_tokens;
  TcpStar watch_star;                  // until the watchdog takes it
  std::unique_ptr<Watchdog> watchdog;  // null: nobody watches

  int stage() const { return layout.stage_of(rank); }
  int tensor_rank() const { return layout.tensor_rank_of(rank); }
  bool first_stage() const { return stage() == 0; }
  bool last_stage() const { return stage() == layout.pipeline() - 1; }
  const TensorShard& shard() const { return layout.shard(rank); }
};

// Aborts every communicator. From any thread; never throws.
void abort_communicators(World& world, const std::string& reason) noexcept;

// Collective over the world, once its communicators are there; a world of one is not watched. From
// then on `world` stays where it is and keeps its communicators. WatchdogOptions::abort is set here.
void start_watchdog(World& world, WatchdogOptions options);

World make_world(std::unique_ptr<Communicator> control, ParallelLayout layout);

// The edge of this rank, over its device's communicators if it has any.
StageEdge make_stage_edge(World& world);

// Of every communicator.
void set_deadlines(World& world, std::chrono::milliseconds limit);

// Every later call of the world's communicators on host memory is recorded; `spans` must outlive
// them. Before anything else refers to them.
void record_spans(World& world, SpanRecorder& spans);

// Collective over the world: connects the ranks' GPUs. `device` is the index of this rank's among
// those that its process sees, usually the local rank. Throws on all ranks alike: kInvalidArgument
// if two ranks would share a GPU, kUnavailable if one of them has no NCCL. A world of one needs
// nothing.
void connect_devices(World& world, int device);

}  // namespace trireme
