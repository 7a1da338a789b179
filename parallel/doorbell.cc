#include "parallel/doorbell.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "base/error.h"
#include "parallel/host_id.h"
#include "parallel/socket.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;
using Secret = std::array<uint32_t, 8>;

constexpr auto kStartLimit = std::chrono::seconds(30);
constexpr auto kHelloLimit = std::chrono::seconds(2);  // for a stranger that says nothing
constexpr auto kRingLimit = std::chrono::seconds(5);   // for a rank that has stopped reading
constexpr std::byte kRing{1};

// What rank 0 tells the others over `control`.
struct Invitation {
  Secret secret{};
  uint16_t port = 0;
  std::array<std::array<char, 16>, 16> addresses{};  // dotted IPv4; empty past the last
};

struct Hello {
  Secret secret{};
  int32_t rank = 0;
};

template <typename T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

// Takes as long for a wrong secret as for the right one.
bool equal(const Secret& a, const Secret& b) {
  uint32_t different = 0;
  for (size_t i = 0; i < a.size(); ++i) different |= a[i] ^ b[i];
  return different == 0;
}

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

Invitation make_invitation(uint16_t port, bool one_host) {
  Invitation invitation;
  std::random_device random;
  for (uint32_t& word : invitation.secret) word = random();
  invitation.port = port;
  if (one_host) return invitation;
  const auto addresses = host_addresses();
  const size_t count = std::min(addresses.size(), invitation.addresses.size());
  for (size_t i = 0; i < count; ++i) {
    std::copy_n(addresses[i].data(), std::min<size_t>(addresses[i].size(), 15),
                invitation.addresses[i].data());
  }
  return invitation;
}

// Rank 0: one connection from every other rank. Whoever does not know the secret is sent away.
std::vector<Socket> accept_all(const Socket& listener, const Secret& secret, int size) {
  const auto until = Clock::now() + kStartLimit;
  std::vector<Socket> sockets(static_cast<size_t>(size));
  for (int missing = size - 1; missing > 0;) {
    Socket socket = accept_tcp(listener, until);
    if (!socket.open()) {
      std::string ranks;
      for (int rank = 1; rank < size; ++rank) {
        if (!sockets[static_cast<size_t>(rank)].open()) ranks += fmt::format(" {}", rank);
      }
      fail(ErrorCode::kUnavailable,
           "doorbell: no TCP connection to rank 0 within {} s from rank{} (a firewall between the "
           "nodes?)",
           kStartLimit.count(), ranks);
    }
    Hello hello;
    const auto hello_until = std::min(until, Clock::now() + kHelloLimit);
    if (!read_all(socket, bytes_of(hello), hello_until) || !equal(hello.secret, secret)) continue;
    if (hello.rank < 1 || hello.rank >= size) continue;
    Socket& place = sockets[static_cast<size_t>(hello.rank)];
    if (place.open() || !write_all(socket, std::span(&kRing, 1), hello_until)) continue;
    place = std::move(socket);
    --missing;
  }
  return sockets;
}

Socket connect_to_ringer(const Invitation& invitation, int rank, bool same_host) {
  std::vector<std::string> addresses;
  if (same_host) addresses.push_back("127.0.0.1");
  for (const auto& address : invitation.addresses) {
    const std::string text(address.data(), strnlen(address.data(), address.size()));
    if (!same_host && !text.empty()) addresses.push_back(text);
  }
  std::string problems;
  for (const std::string& address : addresses) {
    const auto until = Clock::now() + kStartLimit / static_cast<int>(addresses.size() + 1);
    std::string problem;
    Socket socket = connect_tcp(address, invitation.port, until, problem);
    if (socket.open()) {
      Hello hello{invitation.secret, rank};
      std::byte welcome{};
      if (write_all(socket, bytes_of(hello), until) && read_all(socket, bytes_of(welcome), until)) {
        return socket;
      }
      problem = fmt::format("{}:{}: no answer", address, invitation.port);
    }
    if (!problems.empty()) problems += "; ";
    problems += problem;
  }
  fail(ErrorCode::kUnavailable, "doorbell: rank {} cannot reach rank 0 over TCP ({})", rank,
       addresses.empty() ? "its host has no IPv4 address" : problems);
}

}  // namespace

std::unique_ptr<Doorbell> make_doorbell(Communicator& control) {
  if (control.size() == 1) return std::make_unique<NoDoorbell>();
  const auto hosts = gather_host_ids(control);
  const bool one_host =
      std::all_of(hosts.begin(), hosts.end(), [&](const HostId& id) { return id == hosts[0]; });
  if (control.rank() == 0) {
    Invitation invitation;
    Socket listener;
    try {
      uint16_t port = 0;
      listener = listen_tcp(one_host, control.size(), port);
      invitation = make_invitation(port, one_host);
    } catch (const Error&) {
      control.broadcast(bytes_of(invitation), 0);  // port 0: the others need not wait
      throw;
    }
    control.broadcast(bytes_of(invitation), 0);
    return std::make_unique<Ringer>(accept_all(listener, invitation.secret, control.size()));
  }
  Invitation invitation;
  control.broadcast(bytes_of(invitation), 0);
  if (invitation.port == 0) {
    fail(ErrorCode::kUnavailable, "doorbell: rank 0 cannot listen for TCP connections");
  }
  const bool same_host = hosts[static_cast<size_t>(control.rank())] == hosts[0];
  return std::make_unique<Sleeper>(connect_to_ringer(invitation, control.rank(), same_host));
}

}  // namespace trireme
