#include "runtime/trace/device_track.h"

#include <algorithm>
#include <map>
#include <optional>

#include "base/error.h"

namespace trireme {
namespace {

std::optional<SpanKind> kind_of(DevicePart part) {
  switch (part) {
    case DevicePart::kLayers: return SpanKind::kLayers;
    case DevicePart::kSample: return SpanKind::kSample;
    case DevicePart::kSend: return SpanKind::kSend;
    case DevicePart::kReceive: return SpanKind::kReceive;
    case DevicePart::kNothing: return std::nullopt;
  }
  return std::nullopt;
}

// Each stream stamps a part that every step has once, besides those that follow it: counted from
// the last one back, since the first ones may be lost.
bool begins_step(DevicePart part) {
  return part == DevicePart::kLayers || part == DevicePart::kSend || part == DevicePart::kReceive;
}

}  // namespace

std::vector<Span> device_spans(const DeviceTimes& times, uint64_t last_step,
                               const StepWindow& window, int from, const std::vector<int>& to) {
  std::map<uint8_t, uint64_t> left;  // steps of a stream that are still to come
  for (const DeviceStamp& stamp : times.stamps) left[stamp.stream] += begins_step(stamp.part);
  std::vector<Span> spans;
  for (size_t i = 0; i + 1 < times.stamps.size(); ++i) {
    const DeviceStamp& stamp = times.stamps[i];
    uint64_t& to_come = left[stamp.stream];
    to_come -= begins_step(stamp.part);
    const auto kind = kind_of(stamp.part);
    if (!kind || times.stamps[i + 1].stream != stamp.stream || to_come >= last_step) continue;
    Span span;
    span.begin = stamp.time;
    span.end = times.stamps[i + 1].time;
    span.step = last_step - to_come;
    span.kind = *kind;
    if (is_communication(*kind)) {
      span.link = SpanLink::kData;
      span.peer = *kind == SpanKind::kReceive ? from : to.size() == 1 ? to[0] : -1;
    }
    if (window.contains(span.step) && span.end > span.begin) spans.push_back(span);
  }
  return spans;
}

double idle_share(const DeviceTimes& times, uint64_t last_step, uint64_t steps, uint64_t end) {
  const uint64_t begin = end - std::min(steps, end);
  const auto spans = device_spans(times, last_step, {begin, steps + 1}, -1, {});
  int64_t busy = 0, first = INT64_MAX, last = INT64_MIN;
  uint64_t seen = 0;
  for (const Span& span : spans) {
    if (!is_computation(span.kind)) continue;
    if (span.kind == SpanKind::kLayers) ++seen;
    if (span.step == end) {
      if (span.kind == SpanKind::kLayers) last = span.begin;
      continue;
    }
    first = std::min(first, span.begin);
    busy += span.end - span.begin;
  }
  if (steps == 0 || seen != steps + 1 || last <= first) {
    fail(ErrorCode::kInvalidArgument,
         "idle share: steps {} to {} are not among the device's stamps", begin, end);
  }
  return 1.0 - static_cast<double>(busy) / static_cast<double>(last - first);
}

}  // namespace trireme
