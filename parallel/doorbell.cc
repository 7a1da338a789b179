#include "parallel/doorbell.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "base/error.h"
#include "parallel/socket.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kRingLimit = std::chrono::seconds(5);  // for a rank that has stopped reading
constexpr std::byte kRing{1};

class NoDoorbell final : public Doorbell {
 public:
  void ring() override {}
  void sleep() override {}
};

// While it lives, the thread asks for short turns on a core: from Linux 6.12 on, a thread that
// wakes then goes before one in the middle of a longer turn, in place of waiting out that turn's
// milliseconds. Older kernels take no notice.
class ShortTurns {
 public:
  ShortTurns() {
    known_ = syscall(SYS_sched_getattr, 0, &before_, sizeof before_, 0) == 0;
    Attributes attributes = before_;
    attributes.runtime = 100'000;  // nanoseconds, the least there is
    set(attributes);
  }
  ~ShortTurns() { set(before_); }
  ShortTurns(const ShortTurns&) = delete;
  ShortTurns& operator=(const ShortTurns&) = delete;

 private:
  struct Attributes {  // the kernel's sched_attr, first version; Debian 12 has no header for it
    uint32_t size = sizeof(Attributes), policy = 0;
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t runtime = 0, deadline = 0, period = 0;
  };
  void set(Attributes attributes) const {
    if (known_ && attributes.policy == 0) syscall(SYS_sched_setattr, 0, &attributes, 0);
  }

  Attributes before_;
  bool known_ = false;
};

constexpr std::chrono::microseconds kStepAside{50};

class Ringer final : public Doorbell {
 public:
  explicit Ringer(std::vector<Socket> sockets) : sockets_(std::move(sockets)) {}

  void ring() override {
    const ShortTurns turns;
    for (size_t rank = 1; rank < sockets_.size(); ++rank) {
      if (!write_all(sockets_[rank], std::span(&kRing, 1), Clock::now() + kRingLimit)) {
        fail(ErrorCode::kUnavailable, "doorbell: rank {} is gone", rank);
      }
    }
    // A wakened rank is often put on the ringer's own core, where it would wait milliseconds for
    // the ringer, busy from now on, to use up its time slice. Stepping aside lets it go first.
    std::this_thread::sleep_for(kStepAside);
  }
  void sleep() override { fail(ErrorCode::kInternal, "doorbell: rank 0 rings, it does not sleep"); }

 private:
  std::vector<Socket> sockets_;  // by rank; none for rank 0
};

class Sleeper final : public Doorbell {
 public:
  explicit Sleeper(Socket socket) : socket_(std::move(socket)) {}

  void ring() override { fail(ErrorCode::kInternal, "doorbell: only rank 0 rings"); }
  void sleep() override {
    const ShortTurns turns;
    std::byte ring{};
    if (!read_forever(socket_, ring)) fail(ErrorCode::kUnavailable, "doorbell: rank 0 is gone");
  }

 private:
  Socket socket_;
};

}  // namespace

std::unique_ptr<Doorbell> make_doorbell(Communicator& control) {
  return make_doorbell(control.rank(), std::move(connect_tcp_stars(control, 1)[0]));
}

std::unique_ptr<Doorbell> make_doorbell(int rank, TcpStar star) {
  if (star.empty()) return std::make_unique<NoDoorbell>();
  if (rank == 0) return std::make_unique<Ringer>(std::move(star));
  return std::make_unique<Sleeper>(std::move(star[0]));
}

}  // namespace trireme
