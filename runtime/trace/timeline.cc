#include "runtime/trace/timeline.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "runtime/trace/intervals.h"

namespace trireme {
namespace {

constexpr int kTag = 32002;

struct Heading {
  uint64_t host_spans = 0, device_spans = 0, dropped = 0;
  int64_t device_error = 0, clock_error = 0;
  char host[64] = {};
};

void place(std::vector<Span>& spans, const ClockOffset& early, const ClockOffset& late) {
  for (Span& span : spans) {
    span.begin = on_first_rank(span.begin, early, late);
    span.end = on_first_rank(span.end, early, late);
  }
}

// Messages have at most 2 GiB, and 64 MB already are more spans than a picture can use.
constexpr size_t kPart = size_t{1} << 20;  // spans

void send_spans(Communicator& control, const std::vector<Span>& spans) {
  for (size_t at = 0; at < spans.size(); at += kPart) {
    const auto part = std::span(spans).subspan(at, std::min(kPart, spans.size() - at));
    control.send(std::as_bytes(part), 0, kTag);
  }
}

std::vector<Span> receive_spans(Communicator& control, int from, size_t count) {
  std::vector<Span> spans(count);
  for (size_t at = 0; at < count; at += kPart) {
    const auto part = std::span(spans).subspan(at, std::min(kPart, count - at));
    control.recv(std::as_writable_bytes(part), from, kTag);
  }
  return spans;
}

}  // namespace

std::vector<RankTrack> gather_tracks(World& world, const RankRecord& mine, const ClockOffset& early,
                                     const ClockOffset& late) {
  RankRecord placed = mine;
  place(placed.host_spans, early, late);
  place(placed.device_spans, early, late);
  Communicator& control = *world.control;
  Heading heading{placed.host_spans.size(), placed.device_spans.size(), placed.dropped,
                  placed.device_error, std::max(early.error, late.error)};
  gethostname(heading.host, sizeof heading.host - 1);
  std::vector<Heading> all(static_cast<size_t>(control.size()));
  control.all_gather(std::as_bytes(std::span(&heading, 1)), std::as_writable_bytes(std::span(all)));
  std::vector<RankTrack> tracks;
  if (control.rank() != 0) {
    send_spans(control, placed.host_spans);
    send_spans(control, placed.device_spans);
    return tracks;
  }
  for (int rank = 0; rank < control.size(); ++rank) {
    const Heading& from = all[static_cast<size_t>(rank)];
    RankTrack& track = tracks.emplace_back();
    track.rank = rank;
    track.stage = world.layout.stage_of(rank);
    track.tensor_rank = world.layout.tensor_rank_of(rank);
    track.tensor_first = world.layout.stage(rank).first_rank;
    track.host = from.host;
    track.clock_error = from.clock_error;
    track.device_error = from.device_error;
    track.dropped = from.dropped;
    if (rank == 0) {
      track.host_spans = std::move(placed.host_spans);
      track.device_spans = std::move(placed.device_spans);
    } else {
      track.host_spans = receive_spans(control, rank, from.host_spans);
      track.device_spans = receive_spans(control, rank, from.device_spans);
    }
  }
  return tracks;
}

const char* to_string(Lane lane) {
  switch (lane) {
    case Lane::kStep: return "steps";
    case Lane::kHost: return "host";
    case Lane::kCompute: return "compute";
    case Lane::kCommunication: return "communication";
    case Lane::kSend: return "send";
    case Lane::kReceive: return "receive";
    case Lane::kIdle: return "idle";
  }
  return "?";
}

namespace {

// Spans of one thread, cut so that none lies within another: the inner one counts.
std::vector<Span> flatten(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end > b.end;
  });
  std::vector<Span> flat;
  const auto emit = [&flat](Span span, int64_t begin, int64_t end) {
    if (begin >= end) return;
    span.begin = begin;
    span.end = end;
    flat.push_back(span);
  };
  struct Open {
    Span span;
    int64_t done = 0;
  };
  std::vector<Open> stack;
  const auto close_until = [&](int64_t time) {
    while (!stack.empty() && stack.back().span.end <= time) {
      const Open open = stack.back();
      stack.pop_back();
      emit(open.span, open.done, open.span.end);
    }
  };
  for (const Span& span : spans) {
    close_until(span.begin);
    if (!stack.empty()) {
      emit(stack.back().span, stack.back().done, span.begin);
      stack.back().done = span.end;
    }
    stack.push_back({span, span.begin});
  }
  close_until(INT64_MAX);
  std::sort(flat.begin(), flat.end(),
            [](const Span& a, const Span& b) { return a.begin < b.begin; });
  return flat;
}

// Names one operation that several ranks take part in: a collective of a stage, or a message from
// one rank to another, each by its number within the step.
using OperationKey = std::tuple<uint64_t, SpanLink, int, int, int>;

class Operations {
 public:
  // To be asked for the spans of a rank in their order.
  std::optional<OperationKey> key(const RankTrack& track, const Span& span) {
    if (span.link == SpanLink::kTensor && is_communication(span.kind)) {
      return numbered({span.step, span.link, track.stage, -1, 0}, track.rank);
    }
    if (span.link != SpanLink::kData) return std::nullopt;
    if (span.kind == SpanKind::kSend) {
      return numbered({span.step, span.link, track.rank, span.peer, 0}, track.rank);
    }
    if (span.kind == SpanKind::kReceive) {
      return numbered({span.step, span.link, span.peer, track.rank, 0}, track.rank);
    }
    return std::nullopt;
  }

 private:
  OperationKey numbered(OperationKey key, int rank) {
    std::get<4>(key) = counts_[{rank, key}]++;
    return key;
  }
  std::map<std::pair<int, OperationKey>, int> counts_;
};

// When an operation's last rank came to it. The sender of a message on hosts waits for nobody.
struct Meeting {
  int64_t last = 0;
  int ranks = 0;
};

struct RankWork {
  std::vector<Span> spans;  // host's or device's, in order
  bool device = false;
};

RankWork work_of(const RankTrack& track) {
  if (track.device_spans.empty()) return {flatten(track.host_spans), false};
  RankWork work{track.device_spans, true};
  std::sort(work.spans.begin(), work.spans.end(),
            [](const Span& a, const Span& b) { return a.begin < b.begin; });
  return work;
}

Lane lane_of(const RankWork& work, SpanKind kind) {
  if (is_computation(kind)) return Lane::kCompute;
  if (!work.device) return Lane::kCommunication;
  if (kind == SpanKind::kSend) return Lane::kSend;
  return kind == SpanKind::kReceive ? Lane::kReceive : Lane::kCommunication;
}

class RowCutter {
 public:
  explicit RowCutter(const std::vector<RankTrack>& tracks) : tracks_(tracks) {
    for (const RankTrack& track : tracks) work_.push_back(work_of(track));
    for (size_t i = 0; i < tracks.size(); ++i) {
      Operations operations;
      for (const Span& span : work_[i].spans) {
        const auto key = operations.key(tracks[i], span);
        if (!key) continue;
        Meeting& meeting = meetings_[*key];
        meeting.last = std::max(meeting.last, span.begin);
        ++meeting.ranks;
      }
    }
  }

  RankRows cut(size_t index) {
    const RankTrack& track = tracks_[index];
    const RankWork& work = work_[index];
    RankRows rows{&track, {}};
    waits_.clear();
    Operations operations;
    for (const Span& span : work.spans) {
      const auto key = operations.key(track, span);
      if (span.kind == SpanKind::kWait) {
        waits_.push_back(span);
        continue;
      }
      Span rest = span;
      rest.begin = std::clamp(key ? began(*key, span, work.device) : span.begin, span.begin, span.end);
      if (rest.begin > span.begin) {
        waits_.push_back(span);
        waits_.back().end = rest.begin;
      }
      rows.segments.push_back({rest, lane_of(work, span.kind)});
    }
    add_idle(rows);
    add_steps(rows);
    if (work.device) {
      for (const Span& span : flatten(track.host_spans)) rows.segments.push_back({span, Lane::kHost});
    }
    std::stable_sort(rows.segments.begin(), rows.segments.end(),
                     [](const Segment& a, const Segment& b) {
                       if (a.lane != b.lane) return a.lane < b.lane;
                       return a.span.begin < b.span.begin;
                     });
    return rows;
  }

 private:
  // When the operation really began on the rank of `span`: where some of its ranks are not in the
  // record, at once.
  int64_t began(const OperationKey& key, const Span& span, bool device) const {
    const Meeting& meeting = meetings_.at(key);
    if (span.link == SpanLink::kData) {
      const bool waits = device || span.kind == SpanKind::kReceive;
      return waits && meeting.ranks == 2 ? meeting.last : span.begin;
    }
    int ranks = 0;
    for (const RankTrack& track : tracks_) ranks += track.stage == std::get<2>(key);
    return meeting.ranks == ranks ? meeting.last : span.begin;
  }

  // What comes before a step's plan is there leads to it and is no part of it.
  static bool begins_step(SpanKind kind) {
    return kind == SpanKind::kPrepare || kind == SpanKind::kLayers || kind == SpanKind::kSample;
  }

  // Between the first and the last segment; each piece belongs to the step that it led to.
  void add_idle(RankRows& rows) {
    Intervals busy;
    std::vector<std::pair<int64_t, uint64_t>> steps;  // (begin, step) of the segments
    for (const Segment& segment : rows.segments) {
      busy.push_back({segment.span.begin, segment.span.end});
      steps.emplace_back(segment.span.begin, segment.span.step);
    }
    if (steps.empty()) return;
    std::sort(steps.begin(), steps.end());
    busy = unite(std::move(busy));
    std::sort(waits_.begin(), waits_.end(),
              [](const Span& a, const Span& b) { return a.begin < b.begin; });
    const Intervals idle =
        subtract({{std::min(busy.front().begin, waits_.empty() ? INT64_MAX : waits_.front().begin),
                   busy.back().end}},
                 busy);
    const auto add = [&](int64_t begin, int64_t end, Span named) {
      if (begin >= end) return;
      named.begin = begin;
      named.end = end;
      rows.segments.push_back({named, Lane::kIdle});
    };
    const auto add_gap = [&](int64_t begin, int64_t end) {
      const auto next =
          std::lower_bound(steps.begin(), steps.end(), std::pair<int64_t, uint64_t>(end, 0));
      Span gap;
      gap.step = next == steps.end() ? steps.back().second : next->second;
      add(begin, end, gap);
    };
    size_t first = 0;
    for (const Interval& one : idle) {
      int64_t done = one.begin;
      while (first < waits_.size() && waits_[first].end <= one.begin) ++first;
      for (size_t i = first; i < waits_.size() && waits_[i].begin < one.end; ++i) {
        const int64_t begin = std::max(done, waits_[i].begin);
        const int64_t end = std::min(one.end, waits_[i].end);
        if (begin >= end) continue;
        add_gap(done, begin);
        add(begin, end, waits_[i]);
        done = end;
      }
      add_gap(done, one.end);
    }
  }

  void add_steps(RankRows& rows) const {
    const bool device = !rows.track->device_spans.empty();
    std::map<uint64_t, Span> steps;
    for (const Segment& segment : rows.segments) {
      const Span& span = segment.span;
      if (segment.lane == Lane::kCompute && begins_step(span.kind)) {
        const auto [at, is_new] = steps.try_emplace(span.step, span);
        at->second.begin = std::min(at->second.begin, span.begin);
      }
    }
    for (const Segment& segment : rows.segments) {
      const bool counts = segment.lane == Lane::kCompute ||
                          (segment.lane == Lane::kCommunication && !device);
      const auto at = steps.find(segment.span.step);
      if (!counts || at == steps.end()) continue;
      at->second.end = std::max(at->second.end, segment.span.end);
    }
    for (const auto& [step, span] : steps) rows.segments.push_back({span, Lane::kStep});
  }

  const std::vector<RankTrack>& tracks_;
  std::vector<RankWork> work_;
  std::map<OperationKey, Meeting> meetings_;
  std::vector<Span> waits_;  // of the rank at hand
};

}  // namespace

std::vector<RankRows> cut_rows(const std::vector<RankTrack>& tracks) {
  RowCutter cutter(tracks);
  std::vector<RankRows> rows;
  for (size_t i = 0; i < tracks.size(); ++i) rows.push_back(cutter.cut(i));
  return rows;
}

}  // namespace trireme
