#include "parallel/watch_messages.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <type_traits>
#include <utility>

namespace trireme {
namespace {

struct FrameHeader {
  uint32_t word = 0;
  uint32_t bytes = 0;
};

void append(std::vector<std::byte>& out, const void* data, size_t bytes) {
  const size_t at = out.size();
  out.resize(at + bytes);
  if (bytes > 0) std::memcpy(out.data() + at, data, bytes);
}

template <typename T>
void put(std::vector<std::byte>& out, std::span<const T> items) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto count = static_cast<uint64_t>(items.size());
  append(out, &count, sizeof count);
  append(out, items.data(), items.size_bytes());
}

template <typename Items>
bool take(std::span<const std::byte>& in, Items& items) {
  using T = typename Items::value_type;
  uint64_t count = 0;
  if (in.size() < sizeof count) return false;
  std::memcpy(&count, in.data(), sizeof count);
  in = in.subspan(sizeof count);
  if (count > in.size() / sizeof(T)) return false;
  items.resize(count);
  if (count > 0) std::memcpy(items.data(), in.data(), count * sizeof(T));
  in = in.subspan(count * sizeof(T));
  return true;
}

}  // namespace

bool send_frame(const Socket& socket, WatchWord word, std::span<const std::byte> body,
                SocketDeadline until) {
  const FrameHeader header{static_cast<uint32_t>(word), static_cast<uint32_t>(body.size())};
  std::vector<std::byte> bytes;
  append(bytes, &header, sizeof header);
  append(bytes, body.data(), body.size());
  return write_all(socket, bytes, until);
}

bool FrameReader::read(const Socket& socket) {
  for (;;) {
    std::byte some[16 * 1024];
    const ssize_t got = ::recv(socket.fd(), some, sizeof some, MSG_DONTWAIT);
    if (got > 0) {
      append(bytes_, some, static_cast<size_t>(got));
      if (bytes_.size() > kMostBytes) return false;
      continue;
    }
    return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
  }
}

std::optional<WatchFrame> FrameReader::next() {
  FrameHeader header;
  if (bytes_.size() < sizeof header) return std::nullopt;
  std::memcpy(&header, bytes_.data(), sizeof header);
  if (bytes_.size() - sizeof header < header.bytes) return std::nullopt;
  WatchFrame frame;
  frame.word = static_cast<WatchWord>(header.word);
  const auto begin = bytes_.begin() + sizeof header;
  frame.body.assign(begin, begin + header.bytes);
  bytes_.erase(bytes_.begin(), begin + header.bytes);
  return frame;
}

std::vector<std::byte> encode_report(const RankReport& report) {
  std::vector<std::byte> out;
  const int64_t numbers[] = {report.view.now, report.passive ? 1 : 0};
  put(out, std::span<const int64_t>(numbers));
  put(out, std::span<const char>(report.error.data(), report.error.size()));
  put(out, std::span<const LedgerRecord>(report.view.operations));
  put(out, std::span<const LedgerStep>(report.view.steps));
  put(out, std::span<const LedgerStep>(report.view.marks));
  for (const LedgerGroup& group : report.groups) {
    put(out, std::span<const char>(group.name.data(), group.name.size()));
    put(out, std::span<const int32_t>(group.ranks));
  }
  return out;
}

bool decode_report(std::span<const std::byte> bytes, RankReport& report) {
  RankReport read;
  std::vector<int64_t> numbers;
  if (!take(bytes, numbers) || numbers.size() != 2 || !take(bytes, read.error) ||
      !take(bytes, read.view.operations) || !take(bytes, read.view.steps) ||
      !take(bytes, read.view.marks)) {
    return false;
  }
  while (!bytes.empty()) {
    LedgerGroup& group = read.groups.emplace_back();
    if (!take(bytes, group.name) || !take(bytes, group.ranks)) return false;
  }
  report.view = std::move(read.view);
  report.view.now = numbers[0];
  report.passive = numbers[1] != 0;
  report.error = std::move(read.error);
  report.groups = std::move(read.groups);
  return true;
}

}  // namespace trireme
