#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "parallel/watchdog_state.h"

namespace trireme {
namespace {

using Milliseconds = std::chrono::milliseconds;

constexpr Milliseconds kCollectLimit{1'500};
// Where a rank has died its launcher is about to end the others: mpirun gives them a second.
constexpr Milliseconds kHurriedLimit{600};
// Connections that close later than this after the first are of ranks that were ended for it.
constexpr Milliseconds kTogether{200};
constexpr Milliseconds kEndingQuiet{250};
constexpr Milliseconds kLeaveLimit{500};
constexpr Milliseconds kRootLinger{700};

}  // namespace

void Watchdog::State::take_report(size_t of_rank, const WatchFrame& frame) {
  RankReport& report = peers[of_rank].report;
  if (!decode_report(frame.body, report) || !other_plan.empty()) return;
  RankReport mine = peers[0].report;
  mine.view = ledger.view(0);
  other_plan = plan_difference(mine, report);
  // What differs here stays different: diagnose() will find it, and by whom most are.
  const auto first = std::find_if(peers.begin(), peers.end(), [&](const Peer& peer) {
    return peer.report.stage == report.stage;
  });
  const RankReport& measure = first == peers.begin() ? mine : first->report;
  if (alarm.empty()) alarm = queue_difference(measure, report);
}

void Watchdog::State::take_frames(size_t of_rank) {
  Peer& peer = peers[of_rank];
  if (peer.closed) return;
  if (!peer.reader.read(star[of_rank])) {
    peer.closed = true;
    peer.closed_at = Clock::now();
  }
  while (const auto frame = peer.reader.next()) {
    peer.heard = Clock::now();
    switch (frame->word) {
      case WatchWord::kAnswer: peer.answered = true; [[fallthrough]];
      case WatchWord::kReport: take_report(of_rank, *frame); break;
      case WatchWord::kAlarm:
        take_report(of_rank, *frame);
        alarm = where(of_rank) + " has raised an alarm";
        break;
      case WatchWord::kBye:
        peer.left = true;
        send(of_rank, WatchWord::kBye);
        break;
      default: break;
    }
  }
}

// What is wrong, in words; empty: nothing.
std::string Watchdog::State::look() {
  if (ending_for() > kEndingQuiet) return {};
  for (size_t i = 1; i < peers.size(); ++i) {
    const Peer& peer = peers[i];
    if (peer.left) continue;
    if (peer.closed) return where(i) + " is gone";
    if (Clock::now() - peer.heard > options.silence_limit) return where(i) + " does not answer";
  }
  if (!other_plan.empty()) return other_plan;
  if (!alarm.empty()) return alarm;
  {
    const std::lock_guard lock(mutex);
    if (!failure.empty()) return failure;
  }
  return late_step();
}

std::vector<RankReport> Watchdog::State::reports() {
  const auto now = Clock::now();
  std::vector<RankReport> all;
  for (const Peer& peer : peers) all.push_back(peer.report);
  const RankReport mine = own();
  all[0].view = mine.view;
  all[0].groups = mine.groups;
  all[0].error = mine.error;
  all[0].passive = mine.passive;
  auto first_closed = Clock::time_point::max();
  for (const Peer& peer : peers) {
    if (peer.closed && !peer.left) first_closed = std::min(first_closed, peer.closed_at);
  }
  for (size_t i = 1; i < peers.size(); ++i) {
    const Peer& peer = peers[i];
    all[i].unheard = std::chrono::duration<double>(now - peer.heard).count();
    if (peer.left) continue;
    if (peer.closed) {
      if (peer.closed_at <= first_closed + kTogether) all[i].state = RankReport::State::kGone;
    } else if (!peer.answered) {
      all[i].state = RankReport::State::kSilent;
    }
  }
  return all;
}

// Every rank's ledger as it is now.
void Watchdog::State::collect(Milliseconds limit) {
  for (size_t i = 1; i < peers.size(); ++i) {
    peers[i].answered = false;
    if (!peers[i].closed) send(i, WatchWord::kAsk);
  }
  const auto until = Clock::now() + limit;
  const auto missing = [](const Peer& peer) {
    return !peer.closed && !peer.left && !peer.answered;
  };
  while (Clock::now() < until && std::any_of(peers.begin() + 1, peers.end(), missing)) {
    wait_for_input(until);
    for (size_t i = 1; i < peers.size(); ++i) take_frames(i);
  }
}

void Watchdog::State::conclude(const std::string& why) {
  const bool lost = std::any_of(peers.begin() + 1, peers.end(),
                                [](const Peer& peer) { return peer.closed && !peer.left; });
  collect(lost ? kHurriedLimit : kCollectLimit);
  Verdict verdict = diagnose(reports(), why);
  const auto until = Clock::now() + kCollectLimit;
  while (verdict.open && Clock::now() < until) {
    std::this_thread::sleep_for(Milliseconds(20));
    collect(Milliseconds(200));
    verdict = diagnose(reports(), why);
  }
  if (!lost && !other_plan.empty()) verdict.line = other_plan;
  if (options.print) {
    options.print(verdict.line);
    for (const std::string& line : verdict.ranks) options.print("  " + line);
  }
  for (size_t i = 1; i < peers.size(); ++i) {
    if (!peers[i].closed) send(i, WatchWord::kEnd, std::as_bytes(std::span(verdict.line)));
  }
  finish(verdict.line, kRootLinger);
}

void Watchdog::State::leave_all() {
  for (size_t i = 1; i < peers.size(); ++i) {
    if (!peers[i].closed && !peers[i].left) send(i, WatchWord::kBye);
  }
  const auto until = Clock::now() + kLeaveLimit;
  const auto stays = [](const Peer& peer) { return !peer.closed && !peer.left; };
  while (Clock::now() < until && std::any_of(peers.begin() + 1, peers.end(), stays)) {
    wait_for_input(until);
    for (size_t i = 1; i < peers.size(); ++i) take_frames(i);
  }
}

void Watchdog::State::watch_all() {
  auto next_beat = Clock::now();
  while (!is_stopping()) {
    wait_for_input(next_beat);
    for (size_t i = 1; i < peers.size(); ++i) take_frames(i);
    const std::string why = look();
    if (Clock::now() >= next_beat) {
      for (size_t i = 1; i < peers.size(); ++i) {
        if (!peers[i].closed && !peers[i].left) send(i, WatchWord::kAlive);
      }
      next_beat = Clock::now() + beat;
    }
    if (why.empty()) continue;
    conclude(why);
    return;
  }
  leave_all();
}

}  // namespace trireme
