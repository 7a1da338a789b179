// A thread beside each rank's step loop that notices when the world stands still, finds out who is
// to blame, and ends every rank: over TCP, never through MPI, whose thread may be the one that is
// stuck.
//
// Something is wrong when a step takes longer than its limit on some rank, when a rank's connection
// closes or it is silent for too long, when a step loop fails, or when two ranks have different
// plans of one step. Rank 0 then collects every rank's ledger, says what diagnose() makes of them,
// and tells all to end: their communicators are aborted and the processes end with kBrokenWorld. A
// rank that loses rank 0 ends itself.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/diagnosis.h"
#include "parallel/ledger.h"
#include "parallel/tcp_star.h"

namespace trireme {

// The exit code of every rank of a world that broke.
inline constexpr int kBrokenWorld = 3;

struct WatchdogOptions {
  // A step that takes longer is stuck; the first one, which may read weights from a disk, has four
  // times as long. 0: no step is.
  std::chrono::milliseconds step_limit{120'000};
  // A watchdog that is not heard of for so long is stopped, or cannot be reached.
  std::chrono::milliseconds silence_limit{10'000};
  // Prints a line. Any of these is called by the watchdog's thread.
  std::function<void(const std::string& line)> print;
  // Wakes the step loop, wherever it waits, and ends what waits on a device.
  std::function<void(const std::string& reason)> abort;
  // Ends the process.
  std::function<void(int exit_code)> end;
};

// Where a rank is.
struct RankPlace {
  char host[64] = {};
  int32_t stage = 0, tensor = 0;
};

class Watchdog {
 public:
  // `places` by rank; `star` as connect_tcp_stars() makes it. The ledger must outlive it.
  Watchdog(int rank, std::vector<RankPlace> places, TcpStar star, const Ledger& ledger,
           WatchdogOptions options);
  // Leaves in good order: the others watch on without this rank, and rank 0's leaving ends the
  // watch of all.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // The step loop has failed; `passive` if only because others did. Returns once all ranks were
  // told to end, or after a few seconds.
  void failed(const std::string& what, bool passive);
  // The world is ending, and its end has been explained.
  bool has_ended() const;

  // In a signal handler: the launcher ends this process, and what is lost from here on has no other
  // reason. False if nothing is watched; else a fault of before may still be found, so the process
  // should stay for kLastWords.
  static bool note_ending() noexcept;
  static constexpr std::chrono::milliseconds kLastWords{500};

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme
