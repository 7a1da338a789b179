#include "parallel/thread_group.h"

#include <cstring>

#include "base/error.h"
#include "parallel/wait.h"

namespace trireme {

using Clock = std::chrono::steady_clock;

ThreadGroup::ThreadGroup(int size, std::string name, std::shared_ptr<ThreadFamily> family)
    : name_(std::move(name)),
      family_(std::move(family)),
      calls_(static_cast<size_t>(size)),
      mailboxes_(static_cast<size_t>(size)),
      children_(static_cast<size_t>(size)),
      crowded_(size > usable_cores()) {}

// Spins or yields for a moment, then sleeps. False once the limit has passed.
template <typename Done>
bool ThreadGroup::wait_until(Done done, Limit limit) {
  for (int spins = crowded_ ? 0 : 100; spins > 0; --spins) {
    if (done()) return true;
    cpu_relax();
  }
  for (int yields = 0; yields < 20; ++yields) {
    if (done()) return true;
    sched_yield();
  }
  const auto until = Clock::now() + limit;
  std::unique_lock lock(mutex_);
  sleepers_.fetch_add(1);
  bool in_time = true;
  while (!done() && in_time) in_time = changed_.wait_until(lock, until) != std::cv_status::timeout;
  sleepers_.fetch_sub(1);
  return done();
}

void ThreadGroup::wake() {
  if (sleepers_.load() == 0) return;
  { std::lock_guard lock(mutex_); }
  changed_.notify_all();
}

void ThreadGroup::check_open(const char* operation) const {
  if ((generation_.load() & kClosed) == 0) return;
  std::lock_guard lock(mutex_);
  fail(ErrorCode::kAborted, "{}: {}: aborted: {}", name_, operation, close_reason_);
}

void ThreadGroup::close(const std::string& reason) {
  {
    std::lock_guard lock(mutex_);
    if (close_reason_.empty()) close_reason_ = reason.empty() ? "no reason given" : reason;
  }
  generation_.fetch_or(kClosed);
  { std::lock_guard lock(mutex_); }
  changed_.notify_all();
  for (Mailbox& box : mailboxes_) {
    { std::lock_guard lock(box.mutex); }
    box.changed.notify_all();
  }
}

void ThreadGroup::fail_late(int rank, const char* operation, size_t bytes, Limit limit) {
  const uint64_t mine = call(rank).arrived.load();
  std::string missing;
  for (int other = 0; other < size(); ++other) {
    if (call(other).arrived.load() < mine) missing += fmt::format(" {}", other);
  }
  const std::string what = fmt::format("rank {} of {}: {} of {} bytes: waited {} ms for rank{}",
                                       rank, size(), operation, bytes, limit.count(), missing);
  close(what);  // the group is out of step from here on
  throw Error(ErrorCode::kDeadlineExceeded, fmt::format("{}: {}", name_, what));
}

void ThreadGroup::enter(int rank, const char* operation, std::span<const std::byte> in,
                        std::byte* out, int root, uint64_t agreement, Limit limit) {
  uint64_t generation = generation_.load();
  check_open(operation);
  ThreadCall& mine = calls_[static_cast<size_t>(rank)];
  mine.operation = operation;
  mine.in = in.data();
  mine.out = out;
  mine.bytes = in.size();
  mine.root = root;
  mine.agreement = agreement;
  mine.arrived.fetch_add(1);
  if (entered_.fetch_add(1) + 1 == size()) {
    entered_.store(0);
    if (!generation_.compare_exchange_strong(generation, generation + 1)) check_open(operation);
    wake();
  } else {
    const auto moved = [&] { return generation_.load() != generation; };
    if (!wait_until(moved, limit)) {
      uint64_t expected = generation;
      if (generation_.compare_exchange_strong(expected, generation | kClosed)) {
        fail_late(rank, operation, in.size(), limit);
      }
    }
    // Closed after the last rank had entered: all copies still happen, the next call fails.
    if ((generation_.load() & ~kClosed) == generation) check_open(operation);
  }
  check_same_call(rank);
}

// Every rank sees the same calls, so that either all fail here or none does.
void ThreadGroup::check_same_call(int rank) {
  const ThreadCall& mine = call(rank);
  for (int other = 0; other < size(); ++other) {
    const ThreadCall& theirs = call(other);
    if (std::strcmp(mine.operation, theirs.operation) == 0 && mine.bytes == theirs.bytes &&
        mine.root == theirs.root && mine.agreement == theirs.agreement) {
      continue;
    }
    const std::string what = fmt::format(
        "mismatch: rank {} is in {} of {} bytes (root {}, plan {:016x}), rank {} in {} of {} (root "
        "{}, plan {:016x})",
        rank, mine.operation, mine.bytes, mine.root, mine.agreement, other, theirs.operation,
        theirs.bytes, theirs.root, theirs.agreement);
    leave(rank);  // all ranks are here: nobody reads a call that its rank has given up
    close(what);
    throw Error(ErrorCode::kInternal, fmt::format("{}: {}", name_, what));
  }
}

void ThreadGroup::leave(int rank) {
  const uint64_t all = call(rank).arrived.load() * static_cast<uint64_t>(size());
  if (left_.fetch_add(1) + 1 == all) {
    wake();
    return;
  }
  // Copies and sums end in finite time, whatever happened to the group meanwhile.
  while (!wait_until([&] { return left_.load() >= all; }, Limit(1000))) {
  }
}

void ThreadGroup::send(int from, int to, int tag, std::span<const std::byte> data, Limit limit) {
  check_open("send");
  Mailbox& box = mailboxes_[static_cast<size_t>(to)];
  std::unique_lock lock(box.mutex);
  auto& queue = box.queues[{from, tag}];
  const bool in_time = box.changed.wait_until(lock, Clock::now() + limit, [&] {
    return queue.size() < kMaxPending || (generation_.load() & kClosed) != 0;
  });
  check_open("send");
  if (!in_time) {
    fail(
        ErrorCode::kDeadlineExceeded,
        "{}: rank {} of {}: send of {} bytes to rank {} with tag {}: {} messages wait there for {} "
        "ms",
        name_, from, size(), data.size(), to, tag, queue.size(), limit.count());
  }
  queue.emplace_back(data.begin(), data.end());
  lock.unlock();
  box.changed.notify_all();
}

void ThreadGroup::recv(int to, int from, int tag, std::span<std::byte> data, Limit limit) {
  check_open("recv");
  Mailbox& box = mailboxes_[static_cast<size_t>(to)];
  std::unique_lock lock(box.mutex);
  auto& queue = box.queues[{from, tag}];
  const bool in_time = box.changed.wait_until(lock, Clock::now() + limit, [&] {
    return !queue.empty() || (generation_.load() & kClosed) != 0;
  });
  check_open("recv");
  if (!in_time) {
    fail(ErrorCode::kDeadlineExceeded,
         "{}: rank {} of {}: recv of {} bytes from rank {} with tag {}: waited {} ms", name_, to,
         size(), data.size(), from, tag, limit.count());
  }
  if (queue.front().size() != data.size()) {
    fail(ErrorCode::kInternal,
         "{}: rank {} of {}: recv of {} bytes from rank {} with tag {}: the message has {}", name_,
         to, size(), data.size(), from, tag, queue.front().size());
  }
  if (!data.empty()) std::memcpy(data.data(), queue.front().data(), data.size());
  queue.pop_front();
  lock.unlock();
  box.changed.notify_all();
}

int64_t ThreadGroup::probe(int to, int from, int tag, Wait wait, Limit limit) {
  check_open("probe");
  Mailbox& box = mailboxes_[static_cast<size_t>(to)];
  std::unique_lock lock(box.mutex);
  auto& queue = box.queues[{from, tag}];
  const auto ready = [&] { return !queue.empty() || (generation_.load() & kClosed) != 0; };
  if (wait == Wait::kForever) {
    box.changed.wait(lock, ready);
  } else if (wait == Wait::kDeadline &&
             !box.changed.wait_until(lock, Clock::now() + limit, ready)) {
    fail(ErrorCode::kDeadlineExceeded,
         "{}: rank {} of {}: probe for a message from rank {} with tag {}: waited {} ms", name_, to,
         size(), from, tag, limit.count());
  }
  if (wait != Wait::kNever) check_open("probe");
  return queue.empty() ? -1 : static_cast<int64_t>(queue.front().size());
}

void ThreadGroup::abort(const std::string& reason) { close(reason); }

}  // namespace trireme
