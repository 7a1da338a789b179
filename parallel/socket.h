// The few socket calls the doorbell needs. Every wait has a deadline but read_forever().
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace trireme {

using SocketDeadline = std::chrono::steady_clock::time_point;

// Owns a file descriptor (of a socket, or of anything else).
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept;
  ~Socket();

  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// Listens on any free port of 127.0.0.1, or of all the host's addresses. Throws kUnavailable.
Socket listen_tcp(bool loopback_only, int backlog, uint16_t& port);

// Connects to a numeric IPv4 address; on failure returns a closed socket and says why in `problem`.
Socket connect_tcp(const std::string& address, uint16_t port, SocketDeadline until,
                   std::string& problem);

// A closed socket if nobody came until then.
Socket accept_tcp(const Socket& listener, SocketDeadline until);

// False if the other end closed, failed, or the deadline passed.
bool write_all(const Socket& socket, std::span<const std::byte> data, SocketDeadline until);
bool read_all(const Socket& socket, std::span<std::byte> data, SocketDeadline until);

// Blocks until one byte comes; false if the other end closed or failed.
bool read_forever(const Socket& socket, std::byte& byte);

// The host's IPv4 addresses other than loopback, in the order of its interfaces.
std::vector<std::string> host_addresses();

}  // namespace trireme
