// How a rank waits for a peer: spin for a few microseconds (a collective inside a decode step),
// then give the core away, and ask for the time only now and then.
#pragma once

#include <sched.h>

#include <chrono>
#include <cstdint>

namespace trireme {

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The cores this process may run on.
int usable_cores();

//   Waiter waiter(limit, crowded);
//   while (!ready()) if (!waiter.pause()) throw a deadline error;
class Waiter {
 public:
  // `crowded`: there are more ranks than cores, so that spinning only keeps the peer from running.
  Waiter(std::chrono::milliseconds limit, bool crowded) : limit_(limit), crowded_(crowded) {}

  // False once the limit has passed.
  bool pause() {
    if (++rounds_ <= kSpins && !crowded_) {
      cpu_relax();
      return true;
    }
    return pause_slowly();
  }
  // True from the moment on at which the wait is no longer a spin.
  bool slow() const { return crowded_ || rounds_ > kSpins; }

 private:
  static constexpr uint32_t kSpins = 100;  // a few microseconds; a yield costs less than one
  bool pause_slowly();

  std::chrono::milliseconds limit_;
  bool crowded_;
  uint32_t rounds_ = 0;
  std::chrono::steady_clock::time_point start_{};
};

}  // namespace trireme
