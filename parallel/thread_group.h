// What the thread communicators of one group share: a meeting point and a mailbox per rank.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace trireme {

class ThreadGroup;

// All groups split from one: an abort of one is an abort of all.
struct ThreadFamily {
  std::mutex mutex;
  bool aborted = false;
  std::string reason;
  std::vector<std::weak_ptr<ThreadGroup>> groups;
};

// One rank's side of a collective, published when it arrives.
struct alignas(64) ThreadCall {
  const char* operation = "";
  const std::byte* in = nullptr;
  std::byte* out = nullptr;
  size_t bytes = 0;  // of `in`; equal on all ranks
  int root = 0;
  uint64_t agreement = 0;
  std::atomic<uint64_t> arrived{0};  // the number of collectives this rank has entered
};

class ThreadGroup {
 public:
  using Limit = std::chrono::milliseconds;

  ThreadGroup(int size, std::string name, std::shared_ptr<ThreadFamily> family);

  int size() const { return static_cast<int>(calls_.size()); }
  const std::string& name() const { return name_; }
  const std::shared_ptr<ThreadFamily>& family() const { return family_; }
  const ThreadCall& call(int rank) const { return calls_[static_cast<size_t>(rank)]; }

  // enter() returns once all ranks have entered the same operation; until leave() returns, which
  // is when all ranks have called it, every rank's memory may be read and written by the others.
  // Only enter() can fail; leave() waits for copies and sums alone.
  void enter(int rank, const char* operation, std::span<const std::byte> in, std::byte* out,
             int root, uint64_t agreement, Limit limit);
  void leave(int rank);

  void send(int from, int to, int tag, std::span<const std::byte> data, Limit limit);
  void recv(int to, int from, int tag, std::span<std::byte> data, Limit limit);
  int64_t probe(int to, int from, int tag, Wait wait, Limit limit);

  // Used inside split(): what the first rank of each color leaves for the others.
  std::vector<std::shared_ptr<ThreadGroup>>& children() { return children_; }

  void abort(const std::string& reason);

 private:
  struct Mailbox {
    std::mutex mutex;
    std::condition_variable changed;
    std::map<std::pair<int, int>, std::deque<std::vector<std::byte>>> queues;  // by (from, tag)
  };

  template <typename Done>
  bool wait_until(Done done, Limit limit);
  void wake();
  void check_open(const char* operation) const;
  void check_same_call(int rank);
  [[noreturn]] void fail_late(int rank, const char* operation, size_t bytes, Limit limit);
  void close(const std::string& reason);

  static constexpr uint64_t kClosed = uint64_t{1} << 63;
  static constexpr size_t kMaxPending = 1024;  // messages of one sender and tag

  std::string name_;
  std::shared_ptr<ThreadFamily> family_;
  std::vector<ThreadCall> calls_;
  std::vector<Mailbox> mailboxes_;
  std::vector<std::shared_ptr<ThreadGroup>> children_;
  bool crowded_;

  // The meeting point. `generation_` grows by one when the last rank enters; whoever gives up
  // sets kClosed on it instead, so that a late arrival and a passed deadline cannot both win.
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> entered_{0};
  std::atomic<uint64_t> left_{0};
  std::atomic<int> sleepers_{0};
  mutable std::mutex mutex_;  // sleeping, and close_reason_
  std::condition_variable changed_;
  std::string close_reason_;
};

}  // namespace trireme
