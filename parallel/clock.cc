#include "parallel/clock.h"

#include <array>
#include <chrono>
#include <cstdlib>

namespace trireme {
namespace {

constexpr int kTag = 32001;
constexpr int kRounds = 64;

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

template <typename T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

void answer(Communicator& control, int rank) {
  for (int i = 0; i < kRounds; ++i) {
    char question = 0;
    control.recv(bytes_of(question), rank, kTag);
    int64_t time = now();
    control.send(bytes_of(time), rank, kTag);
  }
}

ClockOffset ask(Communicator& control) {
  ClockOffset best{0, 0, INT64_MAX};
  for (int i = 0; i < kRounds; ++i) {
    char question = 1;
    const int64_t sent = now();
    control.send(bytes_of(question), 0, kTag);
    int64_t theirs = 0;
    control.recv(bytes_of(theirs), 0, kTag);
    const int64_t received = now();
    const int64_t error = (received - sent + 1) / 2;
    if (error >= best.error) continue;
    best = {received, theirs - (sent + received) / 2, error};
  }
  if (std::abs(best.offset) <= best.error) best.offset = 0;
  return best;
}

}  // namespace

ClockOffset align_clock(Communicator& control) {
  ClockOffset mine{now(), 0, 0};
  if (control.rank() != 0) mine = ask(control);
  for (int rank = 1; control.rank() == 0 && rank < control.size(); ++rank) answer(control, rank);
  return mine;
}

int64_t on_first_rank(int64_t time, const ClockOffset& early, const ClockOffset& late) {
  if (late.at <= early.at) return time + early.offset;
  const double share =
      static_cast<double>(time - early.at) / static_cast<double>(late.at - early.at);
  return time + early.offset + static_cast<int64_t>(share * static_cast<double>(late.offset - early.offset));
}

}  // namespace trireme
