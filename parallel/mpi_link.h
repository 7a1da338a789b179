// What the MPI files share: one MPI communicator with requests that never wait without a deadline.
// Included by parallel/mpi*.cc and world_mpi.cc only.
#pragma once

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "parallel/shared_group.h"
#include "parallel/wait.h"

namespace trireme {

// Throws kUnavailable naming operation, peer and bytes if an MPI call did not succeed.
void check_mpi(int result, const std::string& name, const char* operation, int peer, size_t bytes);

// This process's share of MPI: the sends that have not left yet, and whether the world is aborted.
class MpiProcess {
 public:
  explicit MpiProcess(bool crowded) : crowded_(crowded) {}
  ~MpiProcess();

  bool crowded() const { return crowded_; }
  // All ranks, node by node. Owned by the environment.
  MPI_Comm ranks() const { return ranks_; }
  void set_ranks(MPI_Comm ranks) { ranks_ = ranks; }
  bool aborted() const { return aborted_.load(std::memory_order_relaxed); }
  std::string reason();
  // From any thread. Tells the groups too, and with them the other ranks of the host.
  void abort(const std::string& reason);
  void add_group(std::weak_ptr<SharedGroup> group);
  // Whether another rank of the host has aborted a group of this process.
  void look_for_abort();

  // Copies `data` and starts to send it.
  void send(MPI_Comm comm, std::span<const std::byte> data, int to, int tag,
            const std::string& name);
  bool full() const { return pending_.size() >= kMaxPending || pending_bytes_ >= kMaxBytes; }
  // Lets MPI move what is under way, and forgets the sends that have left.
  void progress();
  bool idle() const { return pending_.empty(); }

 private:
  struct Pending {
    MPI_Request request = MPI_REQUEST_NULL;
    std::vector<std::byte> data;
  };
  void retire(Pending& entry);

  static constexpr size_t kMaxPending = 512;
  static constexpr size_t kMaxBytes = size_t{256} << 20;
  static constexpr size_t kMaxKept = size_t{4} << 20;  // larger buffers are not kept for reuse

  bool crowded_;
  MPI_Comm ranks_ = MPI_COMM_NULL;
  std::deque<Pending> pending_;
  std::vector<std::vector<std::byte>> spare_;
  size_t pending_bytes_ = 0;
  std::atomic<bool> aborted_{false};
  std::mutex mutex_;  // reason_ and groups_
  std::string reason_;
  std::vector<std::weak_ptr<SharedGroup>> groups_;
};

// An owned duplicate of an MPI communicator.
class MpiLink {
 public:
  // Collective over `comm`.
  MpiLink(MPI_Comm comm, std::string name, std::shared_ptr<MpiProcess> process);
  ~MpiLink();
  MpiLink(const MpiLink&) = delete;
  MpiLink& operator=(const MpiLink&) = delete;

  MPI_Comm comm() const { return comm_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::string& name() const { return name_; }
  MpiProcess& process() const { return *process_; }
  std::chrono::milliseconds limit() const { return limit_; }
  void set_limit(std::chrono::milliseconds limit) { limit_ = limit; }

  void check_open(const char* operation) const;
  void check(int result, const char* operation, int peer, size_t bytes) const {
    if (result != MPI_SUCCESS) check_mpi(result, name_, operation, peer, bytes);
  }

  // Waits until ready() is true, moving MPI along; `peer` and `bytes` are for the message.
  template <typename Ready>
  void wait(const char* operation, int peer, size_t bytes, Ready ready);

  // Posts into buffers of this object's owner, and waits for all that were posted. If that fails
  // the buffers must stay where they are until the process ends.
  void post_recv(const char* operation, std::span<std::byte> data, int from, int tag);
  void post_send(const char* operation, std::span<const std::byte> data, int to, int tag);
  void wait_posted(const char* operation, size_t bytes);

 private:
  [[noreturn]] void fail_late(const char* operation, int peer, size_t bytes) const;

  std::string name_;
  std::shared_ptr<MpiProcess> process_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::chrono::milliseconds limit_{300'000};
  std::vector<MPI_Request> posted_;
  std::vector<int> peers_;       // of posted_
  std::vector<int64_t> expects_;  // bytes of a receive; -1: a send
  std::vector<MPI_Status> statuses_;
};

template <typename Ready>
void MpiLink::wait(const char* operation, int peer, size_t bytes, Ready ready) {
  Waiter waiter(limit_, process_->crowded());
  while (!ready()) {
    if (waiter.slow()) process_->look_for_abort();
    check_open(operation);
    if (!process_->idle()) process_->progress();
    if (!waiter.pause()) fail_late(operation, peer, bytes);
  }
}

}  // namespace trireme
