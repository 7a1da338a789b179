// The insides of a Watchdog: watchdog.cc has what all ranks do and the side of ranks other than 0,
// watchdog_root.cc that of rank 0.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "parallel/watch_messages.h"
#include "parallel/watchdog.h"

namespace trireme {

struct Watchdog::State {
  using Clock = std::chrono::steady_clock;
  using Milliseconds = std::chrono::milliseconds;

  // What rank 0 holds of another rank; another rank of rank 0, without the report.
  struct Peer {
    FrameReader reader;
    RankReport report;
    Clock::time_point heard, closed_at;
    bool closed = false;    // the connection
    bool left = false;      // in good order
    bool answered = false;  // the last kAsk
  };

  State(int of_rank, std::vector<RankPlace> of_ranks, TcpStar of_sockets, const Ledger& of_loop,
        WatchdogOptions of_world);

  void run();
  // Rank 0.
  void watch_all();
  void take_frames(size_t rank);
  void take_report(size_t rank, const WatchFrame& frame);
  std::string look();
  void conclude(const std::string& alarm);
  void collect(Milliseconds limit);
  std::vector<RankReport> reports();
  void leave_all();
  // The others.
  void watch_root();
  bool take_orders(Peer& root);
  void tell_alarms();
  void lose_root(const std::string& why);
  void leave_root(Peer& root);

  // Waits for input, for a wake() or until then.
  void wait_for_input(Clock::time_point until);
  void wake();
  bool is_stopping();
  RankReport own();
  std::string late_step() const;  // in words; empty if none is late
  std::string where(size_t of_rank) const;
  bool send(size_t socket, WatchWord word, std::span<const std::byte> body = {});
  void finish(const std::string& reason, Milliseconds linger);

  const int rank;
  const std::vector<RankPlace> places;
  const TcpStar star;
  const Ledger& ledger;
  const WatchdogOptions options;
  const Milliseconds beat;
  const Socket waker;  // an eventfd

  // The watchdog thread's own.
  std::vector<Peer> peers;  // by rank; on others than 0: [0]
  std::string alarm;        // that another rank told
  std::string other_plan;   // plan_difference() of when a report came: rings are short
  bool watches = true;      // rank 0 has not left
  bool told_late = false, told_failed = false;
  Clock::time_point told_at;

  std::mutex mutex;
  std::condition_variable changed;
  bool stopping = false;
  std::string failure;  // of the step loop
  bool passive = false;
  bool watched = true;  // a failure is of interest to somebody
  std::atomic<bool> ended{false};
  std::thread thread;
};

// How long ago note_ending() was called; negative: it was not.
std::chrono::milliseconds ending_for();

}  // namespace trireme
