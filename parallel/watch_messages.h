// What watchdogs say to each other over TCP: frames of a header and a body. Ranks of one run are of
// one build on one kind of machine, so plain structs travel as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/diagnosis.h"
#include "parallel/socket.h"

namespace trireme {

enum class WatchWord : uint32_t {
  kAlive = 1,  // to and fro: the sender's watchdog runs
  kReport,     // to rank 0, with every beat: encode_report
  kAlarm,      // to rank 0: the same, and something is wrong
  kAsk,        // from rank 0
  kAnswer,     // to rank 0: encode_report
  kEnd,        // from rank 0: the world ends; the body says why
  kBye,        // to and fro: the sender leaves in good order, and expects one back
};

struct WatchFrame {
  WatchWord word = WatchWord::kAlive;
  std::vector<std::byte> body;
};

// False if it did not leave in time or the peer has gone.
bool send_frame(const Socket& socket, WatchWord word, std::span<const std::byte> body,
                SocketDeadline until);

// A connection's bytes become frames.
class FrameReader {
 public:
  // Takes in what is there without waiting. False once the peer has closed, or talks nonsense; what
  // came before is still handed out.
  bool read(const Socket& socket);
  std::optional<WatchFrame> next();

 private:
  static constexpr size_t kMostBytes = 1 << 20;
  std::vector<std::byte> bytes_;
};

// What a rank knows of itself: everything of a RankReport but rank, place, host and state.
std::vector<std::byte> encode_report(const RankReport& report);
// Into `report`; false, and nothing is changed, if it is malformed.
bool decode_report(std::span<const std::byte> bytes, RankReport& report);

}  // namespace trireme
