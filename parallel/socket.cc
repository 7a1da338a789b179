#include "parallel/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;

// False once the deadline has passed with nothing to do.
bool wait_ready(int fd, short events, SocketDeadline until) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    pollfd entry{fd, events, 0};
    const int ready = poll(&entry, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 60'000)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
    if (left <= 0) return false;
  }
}

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

void set_no_delay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

}  // namespace

Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

Socket listen_tcp(bool loopback_only, int backlog, uint16_t& port) {
  Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(loopback_only ? INADDR_LOOPBACK : INADDR_ANY);
  socklen_t length = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (!socket.open() || bind(socket.fd(), generic, length) != 0 ||
      listen(socket.fd(), backlog) != 0 || getsockname(socket.fd(), generic, &length) != 0) {
    fail(ErrorCode::kUnavailable, "doorbell: cannot listen on {}: {}",
         loopback_only ? "127.0.0.1" : "this host", std::strerror(errno));
  }
  port = ntohs(address.sin_port);
  return socket;
}

Socket connect_tcp(const std::string& address, uint16_t port, SocketDeadline until,
                   std::string& problem) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  int error = 0;
  if (inet_pton(AF_INET, address.c_str(), &to.sin_addr) != 1) {
    error = EINVAL;
  } else if (!socket.open()) {
    error = errno;
  } else if (connect(socket.fd(), reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) {
    error = errno;
    if (error == EINPROGRESS) {
      socklen_t length = sizeof error;
      error = ETIMEDOUT;
      if (wait_ready(socket.fd(), POLLOUT, until)) {
        getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &length);
      }
    }
  }
  if (error != 0) {
    problem = fmt::format("{}:{}: {}", address, port, std::strerror(error));
    return Socket();
  }
  set_no_delay(socket.fd());
  return socket;
}

Socket accept_tcp(const Socket& listener, SocketDeadline until) {
  while (wait_ready(listener.fd(), POLLIN, until)) {
    Socket socket(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.open()) continue;  // it went away again
    set_no_delay(socket.fd());
    return socket;
  }
  return Socket();
}

bool write_all(const Socket& socket, std::span<const std::byte> data, SocketDeadline until) {
  while (!data.empty()) {
    const ssize_t sent = ::send(socket.fd(), data.data(), data.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      data = data.subspan(static_cast<size_t>(sent));
    } else if (!would_block() || !wait_ready(socket.fd(), POLLOUT, until)) {
      return false;
    }
  }
  return true;
}

bool read_all(const Socket& socket, std::span<std::byte> data, SocketDeadline until) {
  while (!data.empty()) {
    const ssize_t got = ::recv(socket.fd(), data.data(), data.size(), 0);
    if (got == 0) return false;
    if (got > 0) {
      data = data.subspan(static_cast<size_t>(got));
    } else if (!would_block() || !wait_ready(socket.fd(), POLLIN, until)) {
      return false;
    }
  }
  return true;
}

bool read_forever(const Socket& socket, std::byte& byte) {
  for (;;) {
    const ssize_t got = ::recv(socket.fd(), &byte, 1, 0);
    if (got == 1) return true;
    if (got == 0 || !would_block()) return false;
    pollfd entry{socket.fd(), POLLIN, 0};
    if (poll(&entry, 1, -1) < 0 && errno != EINTR) return false;
  }
}

std::vector<std::string> host_addresses() {
  std::vector<std::string> addresses;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return addresses;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET) continue;
    if ((entry->ifa_flags & IFF_LOOPBACK) != 0 || (entry->ifa_flags & IFF_UP) == 0) continue;
    sockaddr_in address;
    std::memcpy(&address, entry->ifa_addr, sizeof address);
    char text[INET_ADDRSTRLEN];
    if (inet_ntop(AF_INET, &address.sin_addr, text, sizeof text)) addresses.emplace_back(text);
  }
  freeifaddrs(list);
  return addresses;
}

}  // namespace trireme
