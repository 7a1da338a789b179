// One NCCL communicator and its family. NCCL's communicators are nonblocking here: every call
// returns at once, and what NCCL still does in the background is polled with a deadline. A call is
// made under the group's lock, a wait is not, so that abort() from another thread gets in between.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "parallel/communicator.h"
#include "parallel/nccl_peers.h"
#include "parallel/wait.h"

namespace trireme {

class NcclGroup;

// All groups split from one: an abort of one is an abort of all.
struct NcclFamily {
  std::mutex mutex;
  std::vector<std::weak_ptr<NcclGroup>> groups;
  std::vector<std::weak_ptr<StopFlag>> stops;  // of kernels that wait for peers by themselves
  // The host's communicator of these ranks: told of aborts that come by way of the host.
  Communicator* host = nullptr;
};

// An operation in words, for messages.
struct NcclCall {
  const char* operation = "start";
  size_t bytes = 0;
  int peer = -1;  // -1: all ranks

  std::string text() const {
    return peer < 0 ? fmt::format("{} of {} bytes", operation, bytes)
                    : fmt::format("{} of {} bytes, peer rank {}", operation, bytes, peer);
  }
};

class NcclGroup {
 public:
  NcclGroup(std::shared_ptr<NcclFamily> family, std::string name, int rank, int size, int device);
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int device() const { return device_; }
  const std::string& name() const { return name_; }
  const std::shared_ptr<NcclFamily>& family() const { return family_; }
  std::chrono::milliseconds limit() const { return limit_; }
  void set_limit(std::chrono::milliseconds limit) { limit_ = limit; }

  // The constructor makes no communicator: one of these does, collectively.
  void start(const ncclUniqueId& id);
  // `blocks` as in DeviceCommunicator::split_device.
  std::shared_ptr<NcclGroup> split(int color, const std::string& name, int blocks = 0);

  // Makes one NCCL call, `ncclResult_t call(ncclComm_t)`, and returns when NCCL has queued it.
  template <typename Call>
  void run(const NcclCall& what, Call call);
  // Waits for `bool done()`, looking after the deadline, NCCL's errors and the host's aborts.
  template <typename Done>
  void poll(const NcclCall& what, Done done);
  void check(const NcclCall& what);

  // From any thread; the reason given first is kept.
  void abort(const std::string& reason);
  // `call(ncclComm_t)` under the lock if the communicator is still alive.
  template <typename Call>
  void if_open(Call call) {
    std::lock_guard lock(mutex_);
    if (comm_ != nullptr && reason_.empty()) call(comm_);
  }

 private:
  static constexpr uint32_t kSpins = 2000;
  using Clock = std::chrono::steady_clock;

  void finish(const NcclCall& what, ncclResult_t result);
  ncclResult_t state(const NcclCall& what);
  void check_open(const NcclCall& what) const;
  [[noreturn]] void give_up(const NcclCall& what, ErrorCode code, const std::string& why);

  std::shared_ptr<NcclFamily> family_;
  std::string name_;
  int rank_, size_, device_;
  std::chrono::milliseconds limit_{300'000};
  mutable std::mutex mutex_;  // of what follows
  ncclComm_t comm_ = nullptr;
  std::string reason_;  // not empty: aborted
};

template <typename Call>
void NcclGroup::run(const NcclCall& what, Call call) {
  ncclResult_t result = ncclSuccess;
  {
    std::lock_guard lock(mutex_);
    check_open(what);
    result = call(comm_);
  }
  finish(what, result);
}

template <typename Done>
void NcclGroup::poll(const NcclCall& what, Done done) {
  const auto start = Clock::now();
  auto looked = start;
  for (uint32_t round = 0; !done(); ++round) {
    if (round < kSpins) {
      cpu_relax();
      continue;
    }
    const auto now = Clock::now();
    if (now - looked >= std::chrono::milliseconds(1)) {
      looked = now;
      check(what);
    }
    if (now - start >= limit_) {
      give_up(what, ErrorCode::kDeadlineExceeded, fmt::format("waited {} ms", limit_.count()));
    }
    std::this_thread::yield();
  }
}

}  // namespace trireme
