#include "parallel/diagnosis.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>

namespace trireme {
namespace {

using Reports = std::vector<RankReport>;

std::string where(const RankReport& report) {
  return fmt::format("rank {} on {} (stage {}, tensor rank {})", report.rank, report.host,
                     report.stage, report.tensor);
}

double seconds(int64_t ns) { return std::max(0.0, static_cast<double>(ns) * 1e-9); }

const LedgerRecord* last_operation(const RankReport& report) {
  return report.view.operations.empty() ? nullptr : &report.view.operations.back();
}

// The operation that the rank is in; null if it is in none.
const LedgerRecord* current(const RankReport& report) {
  const LedgerRecord* last = last_operation(report);
  return last != nullptr && last->end == 0 ? last : nullptr;
}

// In an operation that other ranks owe something to.
bool waits(const RankReport& report) {
  const LedgerRecord* in = current(report);
  return in != nullptr && in->call.op != LedgerOp::kIdle;
}

const LedgerStep* oldest_open_step(const RankReport& report) {
  for (const LedgerStep& step : report.view.steps) {
    if (step.end == 0) return &step;
  }
  return nullptr;
}

uint64_t step_of(const RankReport& report) {
  if (const LedgerStep* step = oldest_open_step(report)) return step->step;
  return report.view.steps.empty() ? 0 : report.view.steps.back().step;
}

const LedgerGroup* group_of(const RankReport& report, const LedgerCall& call) {
  const auto index = static_cast<size_t>(call.group);
  return call.group >= 0 && index < report.groups.size() ? &report.groups[index] : nullptr;
}

// The rank in the world; -1 if it cannot be told.
int32_t peer_of(const RankReport& report, const LedgerCall& call) {
  const LedgerGroup* group = group_of(report, call);
  const auto peer = static_cast<size_t>(call.peer);
  return group != nullptr && call.peer >= 0 && peer < group->ranks.size() ? group->ranks[peer] : -1;
}

std::string describe(const RankReport& report, const LedgerCall& call) {
  std::string text = to_string(call.op);
  const LedgerGroup* group = group_of(report, call);
  if (call.op == LedgerOp::kIdle || call.op == LedgerOp::kDevice) return text;
  if (call.bytes > 0) text += fmt::format(" of {} bytes", call.bytes);
  if (call.op == LedgerOp::kAllReduce) text += fmt::format(" ({})", to_string(call.dtype));
  if (const int32_t peer = peer_of(report, call); peer >= 0) {
    const char* word = call.op == LedgerOp::kSend        ? "to"
                       : call.op == LedgerOp::kBroadcast ? "by"
                                                         : "from";
    text += fmt::format(" {} rank {}", word, peer);
  }
  if (group != nullptr) text += fmt::format(" on {}", group->name);
  if (call.number > 0) text += fmt::format(" (number {})", call.number);
  return text;
}

// What the rank was doing when it was last heard of.
std::string doing(const RankReport& report) {
  const LedgerStep* step = oldest_open_step(report);
  std::string text = step != nullptr ? fmt::format("in step {} for {:.1f} s, ", step->step,
                                                   seconds(report.view.now - step->begin))
                     : report.view.steps.empty()
                         ? std::string("before the first step, ")
                         : fmt::format("between steps, after step {}, ", step_of(report));
  const LedgerRecord* last = last_operation(report);
  if (last == nullptr) return text + "no operation yet";
  const int64_t since = last->end == 0 ? last->begin : last->end;
  return text + fmt::format("{} {} {} {:.1f} s", last->end == 0 ? "in" : "after",
                            describe(report, last->call), last->end == 0 ? "for" : "since",
                            seconds(report.view.now - since));
}

std::string names(const Reports& reports, const std::vector<int32_t>& ranks) {
  std::string text;
  for (const int32_t rank : ranks) {
    if (!text.empty()) text += ", ";
    text += where(reports[static_cast<size_t>(rank)]);
  }
  return text;
}

std::string short_names(const std::vector<int32_t>& ranks) {
  return fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", fmt::join(ranks, ", "));
}

// The first step that both know and of which their `word`s differ, as each knows it; empty if there
// is none.
std::optional<std::pair<LedgerStep, LedgerStep>> difference(const RankReport& a,
                                                            const RankReport& b,
                                                            uint64_t LedgerStep::*word) {
  std::optional<std::pair<LedgerStep, LedgerStep>> first;
  for (const auto list : {&LedgerView::steps, &LedgerView::marks}) {
    for (const LedgerStep& step : a.view.*list) {
      if (first && step.step >= first->first.step) break;
      const auto& others = b.view.*list;
      const auto same = std::find_if(others.begin(), others.end(), [&](const LedgerStep& other) {
        return other.step == step.step;
      });
      if (same != others.end() && step.*word != (*same).*word) first = {step, *same};
    }
  }
  return first;
}

bool blame_plan(const Reports& reports, Verdict& verdict) {
  for (const RankReport& report : reports) {
    const std::string line = plan_difference(reports[0], report);
    if (line.empty()) continue;
    verdict.culprits.push_back(report.rank);
    if (!verdict.line.empty()) verdict.line += "; ";
    verdict.line += line;
  }
  return !verdict.culprits.empty();
}

// What must be equal on all ranks of a group, for each of its collectives.
struct Shape {
  LedgerOp op;
  DType dtype;
  int32_t root;
  uint64_t bytes, step;
  auto key() const { return std::tie(op, dtype, root, bytes, step); }
  bool operator<(const Shape& other) const { return key() < other.key(); }
};

struct Entry {
  const RankReport* report;
  const LedgerRecord* record;
};
using GroupName = std::pair<std::string, std::vector<int32_t>>;
// Collectives by group and number.
using Collectives = std::map<GroupName, std::map<uint64_t, std::vector<Entry>>>;

Collectives collectives_of(const Reports& reports) {
  Collectives found;
  for (const RankReport& report : reports) {
    for (const LedgerRecord& record : report.view.operations) {
      const LedgerGroup* group = group_of(report, record.call);
      if (group == nullptr || record.call.number == 0) continue;
      found[{group->name, group->ranks}][record.call.number].push_back({&report, &record});
    }
  }
  return found;
}

std::string side(const std::vector<Entry>& entries) {
  const Entry& first = entries[0];
  std::string text = where(*first.report);
  for (size_t i = 1; i < entries.size(); ++i) text += " and " + where(*entries[i].report);
  return fmt::format("{} step {}: {}", text, first.record->step,
                     describe(*first.report, first.record->call));
}

bool blame_mismatch(const Reports& reports, Verdict& verdict) {
  for (const auto& [group, numbers] : collectives_of(reports)) {
    for (const auto& [number, entries] : numbers) {
      std::map<Shape, std::vector<Entry>> sides;
      for (const Entry& entry : entries) {
        const LedgerCall& call = entry.record->call;
        sides[{call.op, call.dtype, call.peer, call.bytes, entry.record->step}].push_back(entry);
      }
      if (sides.size() < 2) continue;
      // Most are right; of two alike, the side of the lowest rank.
      const auto better = [](const auto& a, const auto& b) {
        if (a.second.size() != b.second.size()) return a.second.size() < b.second.size();
        return a.second[0].report->rank > b.second[0].report->rank;
      };
      const auto right = std::max_element(sides.begin(), sides.end(), better);
      verdict.open =
          2 * right->second.size() <= entries.size() && entries.size() < group.second.size();
      for (auto at = sides.begin(); at != sides.end(); ++at) {
        if (at == right) continue;
        for (const Entry& entry : at->second) verdict.culprits.push_back(entry.report->rank);
        if (!verdict.line.empty()) verdict.line += "; ";
        verdict.line += side(at->second);
      }
      verdict.line = fmt::format("mismatch: {}, where {}", verdict.line, side(right->second));
      return true;
    }
  }
  return false;
}

// The measure of a stage is the rank that differs from the fewest, of two alike the lower one.
bool blame_queue(const Reports& reports, Verdict& verdict) {
  std::map<int32_t, std::pair<size_t, const RankReport*>> measures;  // by stage
  for (const RankReport& report : reports) {
    const auto differing = static_cast<size_t>(std::count_if(
        reports.begin(), reports.end(),
        [&](const RankReport& other) { return !queue_difference(report, other).empty(); }));
    const auto [it, is_new] = measures.try_emplace(report.stage, differing, &report);
    if (!is_new && differing < it->second.first) it->second = {differing, &report};
  }
  for (const RankReport& report : reports) {
    const std::string line = queue_difference(*measures.at(report.stage).second, report);
    if (line.empty()) continue;
    verdict.culprits.push_back(report.rank);
    if (!verdict.line.empty()) verdict.line += "; ";
    verdict.line += line;
  }
  return !verdict.culprits.empty();
}

bool blame_error(const Reports& reports, bool passive, Verdict& verdict) {
  for (const RankReport& report : reports) {
    if (report.error.empty() || report.passive != passive) continue;
    if (!verdict.line.empty()) verdict.line += "; ";
    verdict.culprits.push_back(report.rank);
    verdict.line += fmt::format("{} step {}: {}", where(report), step_of(report), report.error);
  }
  return !verdict.culprits.empty();
}

uint64_t last_number(const RankReport& report, const LedgerGroup& group) {
  uint64_t number = 0;
  for (const LedgerRecord& record : report.view.operations) {
    const LedgerGroup* one = group_of(report, record.call);
    if (one == nullptr || one->name != group.name || one->ranks != group.ranks) continue;
    number = std::max(number, record.call.number);
  }
  return number;
}

// The ranks without which the operation that this one is in cannot end.
std::vector<int32_t> awaited(const Reports& reports, const RankReport& report) {
  const LedgerRecord* in = current(report);
  std::vector<int32_t> ranks;
  if (!waits(report)) return ranks;
  const LedgerGroup* group = group_of(report, in->call);
  const auto is_rank = [&](int32_t rank) {  // what came over the wire may be anything
    return rank >= 0 && static_cast<size_t>(rank) < reports.size();
  };
  if (const int32_t peer = peer_of(report, in->call); is_rank(peer)) ranks.push_back(peer);
  if (!ranks.empty() || group == nullptr || in->call.number == 0) return ranks;
  for (const int32_t rank : group->ranks) {
    if (!is_rank(rank)) continue;
    const RankReport& other = reports[static_cast<size_t>(rank)];
    if (last_number(other, *group) < in->call.number) ranks.push_back(rank);
  }
  return ranks;
}

// The first rank that waits for this one, and in what.
std::string waiting_for(const Reports& reports, int32_t rank) {
  for (const RankReport& report : reports) {
    if (report.state != RankReport::State::kAnswers) continue;
    const std::vector<int32_t> ranks = awaited(reports, report);
    if (std::find(ranks.begin(), ranks.end(), rank) == ranks.end()) continue;
    return fmt::format("; rank {} waits for it, {}", report.rank, doing(report));
  }
  return {};
}

bool blame_lost(const Reports& reports, RankReport::State state, Verdict& verdict) {
  for (const RankReport& report : reports) {
    if (report.state == state) verdict.culprits.push_back(report.rank);
  }
  if (verdict.culprits.empty()) return false;
  for (const int32_t rank : verdict.culprits) {
    const RankReport& report = reports[static_cast<size_t>(rank)];
    if (!verdict.line.empty()) verdict.line += "; ";
    verdict.line += where(report);
    verdict.line += state == RankReport::State::kGone
                        ? " is gone: its connection has closed"
                        : fmt::format(
                              " has not answered for {:.1f} s: it is stopped, or cannot be "
                              "reached",
                              report.unheard);
    verdict.line += "; it was last heard of " + doing(report) + waiting_for(reports, rank);
  }
  return true;
}

// One that waits is told; the others are in the ranks' lines.
bool blame_awaited(const Reports& reports, Verdict& verdict) {
  std::map<int32_t, std::vector<int32_t>> waiting;  // by culprit
  for (const RankReport& report : reports) {
    for (const int32_t rank : awaited(reports, report)) {
      if (!waits(reports[static_cast<size_t>(rank)])) waiting[rank].push_back(report.rank);
    }
  }
  for (const auto& [rank, others] : waiting) {
    verdict.culprits.push_back(rank);
    const RankReport& report = reports[static_cast<size_t>(rank)];
    const RankReport& other = reports[static_cast<size_t>(others[0])];
    if (!verdict.line.empty()) verdict.line += "; ";
    // Who computes has a step of its own to end; who has none has passed over what the others do.
    const bool left = oldest_open_step(report) == nullptr;
    verdict.line += fmt::format(
        "{} {}: {}; {} {} for it, {}", where(report),
        left ? fmt::format("has left step {} without what others wait for", current(other)->step)
             : fmt::format("is stuck in step {}", step_of(report)),
        doing(report), short_names(others), others.size() == 1 ? "waits" : "wait", doing(other));
  }
  return !verdict.culprits.empty();
}

// Nobody waits for a rank by name (a device's waits name none): who is in a step and in no
// operation, if not all are.
bool blame_busy(const Reports& reports, Verdict& verdict) {
  for (const RankReport& report : reports) {
    if (oldest_open_step(report) != nullptr && current(report) == nullptr) {
      verdict.culprits.push_back(report.rank);
    }
  }
  if (verdict.culprits.empty() || verdict.culprits.size() == reports.size()) {
    verdict.culprits.clear();
    return false;
  }
  verdict.line = fmt::format("{} {} in no operation: {}", names(reports, verdict.culprits),
                             verdict.culprits.size() == 1 ? "is" : "are",
                             doing(reports[static_cast<size_t>(verdict.culprits[0])]));
  return true;
}

// Others' devices wait for who has not begun a step that they are in, and is in no operation: with
// steps launched ahead, a rank may be late by one.
bool blame_late(const Reports& reports, Verdict& verdict) {
  const auto newest = [](const RankReport& report) {
    return report.view.steps.empty() ? 0 : report.view.steps.back().step;
  };
  uint64_t most = 0;
  for (const RankReport& report : reports) most = std::max(most, newest(report));
  const auto waits_in_it = [&](const RankReport& report) {
    const LedgerRecord* in = current(report);
    return newest(report) == most && in != nullptr && in->call.op == LedgerOp::kDevice;
  };
  if (std::none_of(reports.begin(), reports.end(), waits_in_it)) return false;
  // Reports are of slightly different moments: one that has just ended something is on its way.
  constexpr int64_t kLong = 1'000'000'000;
  for (const RankReport& report : reports) {
    const LedgerRecord* last = last_operation(report);
    if (newest(report) >= most || report.state != RankReport::State::kAnswers ||
        oldest_open_step(report) != nullptr || current(report) != nullptr || last == nullptr ||
        report.view.now - last->end < kLong) {
      continue;
    }
    verdict.culprits.push_back(report.rank);
    if (!verdict.line.empty()) verdict.line += "; ";
    verdict.line += fmt::format("{} is stuck before step {}, which others are in: {}",
                                where(report), newest(report) + 1, doing(report));
  }
  return !verdict.culprits.empty();
}

// All wait for their devices, where a collective that one rank has not queued shows as nothing
// else.
bool blame_behind(const Reports& reports, Verdict& verdict) {
  for (const auto& [group, numbers] : collectives_of(reports)) {
    const auto& [name, ranks] = group;
    uint64_t most = 0;
    for (const auto& [number, entries] : numbers) most = std::max(most, number);
    for (const int32_t rank : ranks) {
      if (rank < 0 || static_cast<size_t>(rank) >= reports.size()) continue;
      const RankReport& report = reports[static_cast<size_t>(rank)];
      const uint64_t last = last_number(report, {name, ranks});
      // Not to be seen in what it told of its last operations: nothing is known of it.
      if (last == most || last == 0) continue;
      verdict.culprits.push_back(rank);
      if (!verdict.line.empty()) verdict.line += "; ";
      verdict.line += fmt::format("{} has come to number {} on {}, others to number {}: {}",
                                  where(report), last, name, most, doing(report));
    }
    if (!verdict.culprits.empty()) return true;
  }
  return false;
}

std::string rank_line(const RankReport& report) {
  std::string text = where(report) + ": " + doing(report);
  if (report.state == RankReport::State::kGone) text += " (gone)";
  if (report.state == RankReport::State::kSilent) text += " (does not answer)";
  if (!report.error.empty()) text += "; error: " + report.error;
  const auto& operations = report.view.operations;
  if (operations.size() > 1) text += "; before:";
  const size_t first = operations.size() > 4 ? operations.size() - 4 : 0;
  for (size_t i = first; i + 1 < operations.size(); ++i) {
    text += (i == first ? " " : ", ") + describe(report, operations[i].call);
  }
  return text;
}

}  // namespace

std::string plan_difference(const RankReport& root, const RankReport& other) {
  const auto steps = difference(root, other, &LedgerStep::plan);
  if (!steps) return {};
  const auto& [right, wrong] = *steps;
  return fmt::format("{} step {}: the hash of its plan is {:016x}, that of {} is {:016x}",
                     where(other), wrong.step, wrong.plan, where(root), right.plan);
}

std::string queue_difference(const RankReport& measure, const RankReport& other) {
  if (measure.stage != other.stage) return {};
  const auto steps = difference(measure, other, &LedgerStep::queued);
  if (!steps) return {};
  const auto& [right, wrong] = *steps;
  return fmt::format("{} step {}: its device was given {} collectives before, that of {} {}",
                     where(other), wrong.step, wrong.queued, where(measure), right.queued);
}

Verdict diagnose(const std::vector<RankReport>& reports, const std::string& alarm) {
  Verdict verdict;
  if (!(blame_lost(reports, RankReport::State::kGone, verdict) ||
        blame_lost(reports, RankReport::State::kSilent, verdict) || blame_plan(reports, verdict) ||
        blame_mismatch(reports, verdict) || blame_queue(reports, verdict) ||
        blame_error(reports, false, verdict) || blame_awaited(reports, verdict) ||
        blame_busy(reports, verdict) || blame_late(reports, verdict) ||
        blame_behind(reports, verdict) || blame_error(reports, true, verdict))) {
    verdict.line = fmt::format("{}; no rank is behind the others", alarm);
  }
  for (const RankReport& report : reports) verdict.ranks.push_back(rank_line(report));
  return verdict;
}

}  // namespace trireme
