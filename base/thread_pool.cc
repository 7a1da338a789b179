#include "base/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace trireme {
namespace {

// A worker without work first spins for some microseconds (the gap between two ops of a decode
// step), then offers its core to others for a tenth of a millisecond or so (a gap with a collective
// in it; ranks may share cores), then sleeps: waking it costs tens of microseconds.
constexpr int kSpins = 200;
constexpr int kYields = 300;

void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

struct ThreadPool::State {
  std::atomic<uint64_t> generation{0};
  std::atomic<int> running{0};
  std::atomic<int> sleeping{0};
  std::atomic<bool> stopping{false};
  const std::function<void(int)>* body = nullptr;
  std::mutex mutex;
  std::condition_variable wake;
  std::exception_ptr first_error;
  std::vector<std::thread> workers;
  std::vector<cpu_set_t> places;
  std::thread::id caller;  // that is bound to places[0]
  cpu_set_t callers_own;   // where it could run before

  // Where the kernel refuses (a cpuset that shrank), the thread runs anywhere: slower, not wrong.
  void bind(int thread) const {
    if (!places.empty()) sched_setaffinity(0, sizeof(cpu_set_t), &places[thread]);
  }
  void bind_caller() {
    if (places.empty() || caller == std::this_thread::get_id()) return;
    if (sched_getaffinity(0, sizeof callers_own, &callers_own) != 0) return;
    caller = std::this_thread::get_id();
    bind(0);
  }

  void call(int thread) {
    try {
      (*body)(thread);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!first_error) first_error = std::current_exception();
    }
  }

  void work(int thread) {
    bind(thread);
    uint64_t seen = 0;
    while (true) {
      for (int i = 0; i < kSpins && generation.load(std::memory_order_acquire) == seen; ++i) {
        pause_cpu();
      }
      for (int i = 0; i < kYields && generation.load(std::memory_order_acquire) == seen; ++i) {
        std::this_thread::yield();
      }
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        sleeping.fetch_add(1);
        wake.wait(lock, [&] { return generation.load() != seen; });
        sleeping.fetch_sub(1);
      }
      seen = generation.load(std::memory_order_acquire);
      if (stopping.load()) return;
      call(thread);
      running.fetch_sub(1, std::memory_order_release);
    }
  }

  void announce() {
    generation.fetch_add(1);  // sequentially consistent: ordered before the read of `sleeping`
    if (sleeping.load() > 0) {
      { const std::lock_guard lock(mutex); }
      wake.notify_all();
    }
  }
};

ThreadPool::ThreadPool(int threads, std::vector<cpu_set_t> places)
    : state_(std::make_unique<State>()) {
  if (threads < 1) fail(ErrorCode::kInvalidArgument, "threads: {} is less than 1", threads);
  if (!places.empty() && places.size() != static_cast<size_t>(threads)) {
    fail(ErrorCode::kInternal, "thread pool: {} places for {} threads", places.size(), threads);
  }
  state_->places = std::move(places);
  for (int i = 1; i < threads; ++i) {
    state_->workers.emplace_back([state = state_.get(), i] { state->work(i); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stopping.store(true);
  state_->announce();
  for (auto& worker : state_->workers) worker.join();
}

int ThreadPool::size() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::run(const std::function<void(int)>& body) {
  State& state = *state_;
  state.bind_caller();
  if (state.workers.empty()) {
    body(0);
    return;
  }
  state.body = &body;
  state.running.store(static_cast<int>(state.workers.size()), std::memory_order_relaxed);
  state.announce();
  state.call(0);
  for (int spins = 0; state.running.load(std::memory_order_acquire) != 0; ++spins) {
    // On an oversubscribed machine the worker may wait for this very core.
    if (spins < kSpins)
      pause_cpu();
    else
      std::this_thread::yield();
  }
  if (state.first_error) std::rethrow_exception(std::exchange(state.first_error, nullptr));
}

void ThreadPool::release_caller() {
  State& state = *state_;
  if (state.caller == std::this_thread::get_id()) {
    sched_setaffinity(0, sizeof state.callers_own, &state.callers_own);
  }
  state.caller = {};
}

Range split_range(int64_t count, int thread, int threads, int64_t grain) {
  const int64_t units = (count + grain - 1) / grain;
  const int64_t begin = units * thread / threads * grain;
  const int64_t end = units * (thread + 1) / threads * grain;
  return {begin < count ? begin : count, end < count ? end : count};
}

}  // namespace trireme
