#include "parallel/wait.h"

#include <time.h>

#include <thread>

namespace trireme {

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());
}

bool Waiter::pause_slowly() {
  using Clock = std::chrono::steady_clock;
  if (start_ == Clock::time_point{}) start_ = Clock::now();
  sched_yield();
  if (rounds_ % 16 != 0) return true;
  const auto waited = Clock::now() - start_;
  if (waited >= limit_) return false;
  // A wait this long is for a peer that computes: on a crowded host it may need this very core,
  // and a yielding thread still takes its turns. 50 us more make no difference after 2 ms.
  if (crowded_ && waited > std::chrono::milliseconds(2)) {
    const timespec nap{0, 50'000};
    nanosleep(&nap, nullptr);
  }
  return true;
}

}  // namespace trireme
