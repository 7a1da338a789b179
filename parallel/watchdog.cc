#include "parallel/watchdog.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "parallel/watchdog_state.h"

namespace trireme {
namespace {

using Milliseconds = std::chrono::milliseconds;

constexpr size_t kToldOperations = 48;
constexpr Milliseconds kSendLimit{200};
constexpr Milliseconds kLeaveLimit{500};
constexpr Milliseconds kVerdictLimit{6'000};  // from an alarm to rank 0's word
constexpr Milliseconds kRankLinger{300};      // rank 0 may still have clients to tell
// A launcher that ends all ranks ends rank 0 first, perhaps.
constexpr Milliseconds kRootGone{300};

// Of the process, since a signal is the process's.
std::atomic<int64_t> ending_since{0};  // ns; 0: not
std::atomic<int> running{0};

int64_t now_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

Milliseconds ending_for() {
  const int64_t since = ending_since.load();
  return Milliseconds(since == 0 ? -1 : (now_ns() - since) / 1'000'000);
}

bool Watchdog::note_ending() noexcept {
  int64_t expected = 0;
  ending_since.compare_exchange_strong(expected, now_ns());
  return running.load() > 0;
}

Watchdog::State::State(int of_rank, std::vector<RankPlace> of_ranks, TcpStar of_sockets,
                       const Ledger& of_loop, WatchdogOptions of_world)
    : rank(of_rank),
      places(std::move(of_ranks)),
      star(std::move(of_sockets)),
      ledger(of_loop),
      options(std::move(of_world)),
      beat(std::clamp(options.silence_limit / 4, Milliseconds(10), Milliseconds(1000))),
      waker(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      peers(star.size()) {
  for (size_t i = 0; i < peers.size(); ++i) {
    peers[i].heard = Clock::now();
    RankReport& report = peers[i].report;
    report.rank = static_cast<int32_t>(i);
    report.stage = places[i].stage;
    report.tensor = places[i].tensor;
    report.host = places[i].host;
  }
}

std::string Watchdog::State::where(size_t of_rank) const {
  const RankPlace& place = places[of_rank];
  return fmt::format("rank {} on {} (stage {}, tensor rank {})", of_rank, place.host, place.stage,
                     place.tensor);
}

void Watchdog::State::wait_for_input(Clock::time_point until) {
  std::vector<pollfd> entries{{waker.fd(), POLLIN, 0}};
  for (size_t i = 0; i < star.size(); ++i) {
    if (star[i].open() && !peers[i].closed) entries.push_back({star[i].fd(), POLLIN, 0});
  }
  const auto left = std::chrono::ceil<Milliseconds>(until - Clock::now()).count();
  poll(entries.data(), entries.size(), static_cast<int>(std::clamp<int64_t>(left, 0, 60'000)));
  uint64_t count = 0;
  [[maybe_unused]] const auto got = read(waker.fd(), &count, sizeof count);
}

void Watchdog::State::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const auto put = write(waker.fd(), &one, sizeof one);
}

bool Watchdog::State::is_stopping() {
  const std::lock_guard lock(mutex);
  return stopping;
}

RankReport Watchdog::State::own() {
  RankReport report;
  report.view = ledger.view(kToldOperations);
  report.groups = ledger.groups();
  const std::lock_guard lock(mutex);
  report.error = failure;
  report.passive = passive;
  return report;
}

std::string Watchdog::State::late_step() const {
  if (options.step_limit.count() == 0) return {};
  const LedgerView view = ledger.view(0);
  const bool any_ended = std::any_of(view.steps.begin(), view.steps.end(),
                                     [](const LedgerStep& step) { return step.end != 0; });
  const auto limit = any_ended ? options.step_limit : 4 * options.step_limit;
  for (const LedgerStep& step : view.steps) {
    if (step.end != 0) continue;
    const std::chrono::nanoseconds taken(view.now - step.begin);
    if (taken < limit) return {};
    return fmt::format("{} step {}: not done in {:.1f} s", where(static_cast<size_t>(rank)),
                       step.step, std::chrono::duration<double>(taken).count());
  }
  return {};
}

bool Watchdog::State::send(size_t socket, WatchWord word, std::span<const std::byte> body) {
  return send_frame(star[socket], word, body, Clock::now() + kSendLimit);
}

// The step loop gets a moment to unwind: rank 0's tells its clients.
void Watchdog::State::finish(const std::string& reason, Milliseconds linger) {
  if (options.abort) options.abort(reason);
  {
    const std::lock_guard lock(mutex);
    ended = true;
  }
  changed.notify_all();
  std::this_thread::sleep_for(linger);
  if (options.end) options.end(kBrokenWorld);
}

void Watchdog::State::run() {
  if (rank == 0) {
    watch_all();
  } else {
    watch_root();
  }
  const std::lock_guard lock(mutex);
  watched = false;
  changed.notify_all();
}

// False once there is nothing more to watch.
bool Watchdog::State::take_orders(Peer& root) {
  if (!root.reader.read(star[0])) root.closed = true;
  while (const auto frame = root.reader.next()) {
    root.heard = Clock::now();
    switch (frame->word) {
      case WatchWord::kAsk: send(0, WatchWord::kAnswer, encode_report(own())); break;
      case WatchWord::kEnd:
        finish({reinterpret_cast<const char*>(frame->body.data()), frame->body.size()},
               kRankLinger);
        return false;
      case WatchWord::kBye: send(0, WatchWord::kBye); return false;
      default: break;
    }
  }
  const std::chrono::duration<double> silent = Clock::now() - root.heard;
  if (root.closed) {
    lose_root("is gone: its connection has closed");
  } else if (silent > options.silence_limit) {
    lose_root(fmt::format("has not answered for {:.1f} s: it is stopped, or cannot be reached",
                          silent.count()));
  } else if ((told_late || told_failed) && Clock::now() - told_at > kVerdictLimit) {
    lose_root("does not end the world");
  } else {
    return true;
  }
  return false;
}

// Each waits a little longer than the one before: the launcher ends the others when the first ends.
void Watchdog::State::lose_root(const std::string& why) {
  std::this_thread::sleep_for(std::min(kRootGone * rank, 3 * kRootGone));
  const std::string line = where(0) + " " + why;
  if (ending_for().count() < 0 && options.print) options.print(line);
  finish(line, Milliseconds(0));
}

void Watchdog::State::tell_alarms() {
  bool has_failed = false;
  {
    const std::lock_guard lock(mutex);
    has_failed = !failure.empty();
  }
  const bool is_late = !told_late && !late_step().empty();
  if (!is_late && (told_failed || !has_failed)) return;
  told_late = told_late || is_late;
  told_failed = has_failed;
  told_at = Clock::now();
  send(0, WatchWord::kAlarm, encode_report(own()));
}

void Watchdog::State::watch_root() {
  Peer& root = peers[0];
  auto next_beat = Clock::now();
  while (!is_stopping()) {
    wait_for_input(next_beat);
    if (!take_orders(root)) return;
    tell_alarms();
    if (Clock::now() < next_beat) continue;
    send(0, WatchWord::kReport, encode_report(own()));
    next_beat = Clock::now() + beat;
  }
  leave_root(root);
}

void Watchdog::State::leave_root(Peer& root) {
  send(0, WatchWord::kBye);
  const auto until = Clock::now() + kLeaveLimit;
  while (Clock::now() < until) {
    if (!root.reader.read(star[0])) return;
    while (const auto frame = root.reader.next()) {
      if (frame->word == WatchWord::kBye) return;
    }
    wait_for_input(until);
  }
}

Watchdog::Watchdog(int rank, std::vector<RankPlace> places, TcpStar star, const Ledger& ledger,
                   WatchdogOptions options)
    : state_(std::make_unique<State>(rank, std::move(places), std::move(star), ledger,
                                     std::move(options))) {
  ++running;
  // Signals are for the threads that wait for them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  state_->thread = std::thread([state = state_.get()] { state->run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wake();
  state_->thread.join();
  --running;
}

void Watchdog::failed(const std::string& what, bool passive) {
  std::unique_lock lock(state_->mutex);
  if (state_->failure.empty()) {
    state_->failure = what;
    state_->passive = passive;
  }
  state_->wake();
  state_->changed.wait_for(lock, kVerdictLimit,
                           [this] { return state_->ended.load() || !state_->watched; });
}

bool Watchdog::has_ended() const { return state_->ended.load(); }

}  // namespace trireme
