// A fixed team of threads that splits one loop at a time: the compute threads of a rank.
#pragma once

#include <sched.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace trireme {

class ThreadPool {
 public:
  // `threads` >= 1, the caller's own thread included. Workers spin briefly after a task (decode
  // issues hundreds of loops per token), then sleep: an idle pool uses no CPU.
  // `places` (base/numa.h): the processors that each thread keeps to, the caller from its first
  // run(); empty: any.
  explicit ThreadPool(int threads, std::vector<cpu_set_t> places = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Calls body(thread) once for each thread in [0, size()), and returns when all have returned.
  // The calling thread is thread 0. Not reentrant; one caller at a time. An exception thrown by a
  // body is rethrown here after all have ended (the first one wins).
  void run(const std::function<void(int thread)>& body);

  // The thread that called run() may run where it could before, until it calls it again: threads
  // that it starts meanwhile are not bound. By that thread, or after it has ended.
  void release_caller();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The part of [0, count) that `thread` of `threads` takes, cut at multiples of `grain`.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
};
Range split_range(int64_t count, int thread, int threads, int64_t grain = 1);

}  // namespace trireme
