#include "runtime/trace/overlap.h"

#include <algorithm>

#include "base/error.h"
#include "runtime/trace/intervals.h"

namespace trireme {
namespace {

int64_t begin_of(const RankRows& rows, uint64_t step) {
  for (const Segment& segment : rows.segments) {
    if (segment.lane == Lane::kStep && segment.span.step == step) return segment.span.begin;
  }
  fail(ErrorCode::kInvalidArgument, "overlap: step {} is not in the record of rank {}", step,
       rows.track->rank);
}

// What lies in the lanes that `wanted` names, within the window.
template <typename Wanted>
Intervals covered(const RankRows& rows, const Interval& window, Wanted wanted) {
  Intervals all;
  for (const Segment& segment : rows.segments) {
    if (wanted(segment.lane)) all.push_back({segment.span.begin, segment.span.end});
  }
  return intersect(unite(std::move(all)), {window});
}

}  // namespace

std::vector<StageOverlap> measure_overlap(const std::vector<RankRows>& rows, uint64_t first,
                                          uint64_t last) {
  std::vector<StageOverlap> stages;
  std::vector<int> ranks;
  for (const RankRows& rank : rows) {
    const auto stage = static_cast<size_t>(rank.track->stage);
    if (stage >= stages.size()) stages.resize(stage + 1);
    ranks.resize(stages.size());
    ++ranks[stage];
    const Interval window{begin_of(rank, first), begin_of(rank, last)};
    const Intervals compute =
        covered(rank, window, [](Lane lane) { return lane == Lane::kCompute; });
    const Intervals communication = covered(rank, window, [](Lane lane) {
      return lane == Lane::kCommunication || lane == Lane::kSend || lane == Lane::kReceive;
    });
    const Intervals exposed = subtract(communication, compute);
    const double scale = 1e-9 / static_cast<double>(last - first);
    const auto per_step = [scale](int64_t ns) { return static_cast<double>(ns) * scale; };
    StageOverlap& sum = stages[stage];
    sum.stage = rank.track->stage;
    sum.step += per_step(window.end - window.begin);
    sum.compute += per_step(length(compute));
    sum.communication += per_step(length(communication));
    sum.exposed += per_step(length(exposed));
    sum.idle += per_step(window.end - window.begin - length(compute) - length(exposed));
  }
  for (size_t i = 0; i < stages.size(); ++i) {
    for (double* value : {&stages[i].step, &stages[i].compute, &stages[i].communication,
                          &stages[i].exposed, &stages[i].idle}) {
      *value /= ranks[i];
    }
  }
  return stages;
}

}  // namespace trireme
