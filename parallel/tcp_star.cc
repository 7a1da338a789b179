#include "parallel/tcp_star.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <random>

#include "base/error.h"
#include "parallel/host_id.h"

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;
using Secret = std::array<uint32_t, 8>;

constexpr auto kStartLimit = std::chrono::seconds(30);
constexpr auto kHelloLimit = std::chrono::seconds(2);  // for a stranger that says nothing
constexpr std::byte kWelcome{1};

// What rank 0 tells the others over `control`.
struct Invitation {
  Secret secret{};
  uint16_t port = 0;
  std::array<std::array<char, 16>, 16> addresses{};  // dotted IPv4; empty past the last
};

struct Hello {
  Secret secret{};
  int32_t rank = 0;
  int32_t channel = 0;
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

// Rank 0: every channel's connection from every other rank. Whoever does not know the secret is
// sent away.
std::vector<TcpStar> accept_all(const Socket& listener, const Secret& secret, int size,
                                int channels) {
  const auto until = Clock::now() + kStartLimit;
  std::vector<TcpStar> stars(static_cast<size_t>(channels));
  for (TcpStar& star : stars) star.resize(static_cast<size_t>(size));
  for (int missing = (size - 1) * channels; missing > 0;) {
    Socket socket = accept_tcp(listener, until);
    if (!socket.open()) {
      std::string ranks;
      for (size_t rank = 1; rank < stars[0].size(); ++rank) {
        const bool here = std::all_of(stars.begin(), stars.end(),
                                      [&](const TcpStar& star) { return star[rank].open(); });
        if (!here) ranks += fmt::format(" {}", rank);
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
    if (hello.channel < 0 || hello.channel >= channels) continue;
    Socket& place = stars[static_cast<size_t>(hello.channel)][static_cast<size_t>(hello.rank)];
    if (place.open() || !write_all(socket, std::span(&kWelcome, 1), hello_until)) continue;
    place = std::move(socket);
    --missing;
  }
  return stars;
}

Socket connect_to_root(const Invitation& invitation, int rank, int channel, bool same_host) {
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
      Hello hello{invitation.secret, rank, channel};
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

std::vector<TcpStar> connect_tcp_stars(Communicator& control, int channels) {
  if (control.size() == 1) return std::vector<TcpStar>(static_cast<size_t>(channels));
  const auto hosts = gather_host_ids(control);
  const bool one_host =
      std::all_of(hosts.begin(), hosts.end(), [&](const HostId& id) { return id == hosts[0]; });
  Invitation invitation;
  if (control.rank() == 0) {
    Socket listener;
    try {
      uint16_t port = 0;
      listener = listen_tcp(one_host, control.size() * channels, port);
      invitation = make_invitation(port, one_host);
    } catch (const Error&) {
      control.broadcast(bytes_of(invitation), 0);  // port 0: the others need not wait
      throw;
    }
    control.broadcast(bytes_of(invitation), 0);
    return accept_all(listener, invitation.secret, control.size(), channels);
  }
  control.broadcast(bytes_of(invitation), 0);
  if (invitation.port == 0) {
    fail(ErrorCode::kUnavailable, "doorbell: rank 0 cannot listen for TCP connections");
  }
  const bool same_host = hosts[static_cast<size_t>(control.rank())] == hosts[0];
  std::vector<TcpStar> stars;
  for (int channel = 0; channel < channels; ++channel) {
    TcpStar& star = stars.emplace_back();
    star.push_back(connect_to_root(invitation, control.rank(), channel, same_host));
  }
  return stars;
}

}  // namespace trireme
