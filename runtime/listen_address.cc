#include "runtime/listen_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

#include "base/error.h"

namespace trireme {
namespace {

struct HostPort {
  std::string host, port;
};

HostPort split(const std::string& address) {
  const auto bad = [&](const char* why) {
    fail(ErrorCode::kInvalidArgument, "listen address \"{}\": {}", address, why);
  };
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) bad("it must be HOST:PORT or [IPV6]:PORT");
  HostPort parts{address.substr(0, colon), address.substr(colon + 1)};
  if (parts.host.front() == '[' && parts.host.back() == ']') {
    parts.host = parts.host.substr(1, parts.host.size() - 2);
  } else if (parts.host.find(':') != std::string::npos) {
    bad("an IPv6 address needs brackets, as in [::1]:50051");
  }
  int port = -1;
  const char* end = parts.port.data() + parts.port.size();
  const auto result = std::from_chars(parts.port.data(), end, port);
  if (result.ec != std::errc() || result.ptr != end || port < 0 || port > 65535) {
    bad("the port must be from 0 (any free one) to 65535");
  }
  return parts;
}

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

// Binds and listens as the server will, then lets go.
void probe(const std::string& address, const addrinfo& info) {
  const Socket socket(::socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (socket.fd() < 0) return;  // e.g. no IPv6 here: gRPC finds its own way
  const int one = 1;
  setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (bind(socket.fd(), info.ai_addr, info.ai_addrlen) == 0 && listen(socket.fd(), 1) == 0) return;
  if (errno == EADDRINUSE) {
    fail(ErrorCode::kUnavailable,
         "cannot listen on {}: the port is in use, another server may be running (port 0 takes any "
         "free one)",
         address);
  }
  fail(ErrorCode::kUnavailable, "cannot listen on {}: {}", address, std::strerror(errno));
}

}  // namespace

void check_listen_address(const std::string& address) {
  const HostPort parts = split(address);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int rc = getaddrinfo(parts.host.c_str(), parts.port.c_str(), &hints, &found);
  if (rc != 0) {
    fail(ErrorCode::kInvalidArgument, "listen address \"{}\": {}", address, gai_strerror(rc));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> list(found, &freeaddrinfo);
  for (const addrinfo* info = list.get(); info != nullptr; info = info->ai_next) {
    probe(address, *info);
  }
}

}  // namespace trireme
