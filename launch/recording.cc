#include "launch/recording.h"

#include <algorithm>

#include "runtime/trace/device_track.h"

namespace trireme {
namespace {

// Layers, sampling, send and receive, each with its end.
constexpr uint64_t kStampsPerStep = 8;
constexpr uint64_t kMostStamps = uint64_t{1} << 22;

}  // namespace

Recording::Recording(OfflineSession& session, uint64_t device_steps)
    : session_(session), early_(align_clock(*session.instance().world().control)) {
  StepTimer* timer = session.instance().backend().step_timer();
  if (timer == nullptr || device_steps == 0) return;
  timer->start(static_cast<size_t>(std::min(kMostStamps, kStampsPerStep * device_steps)));
}

std::vector<RankTrack> Recording::finish() {
  Instance& instance = session_.instance();
  RankRecord record;
  if (const SpanRecorder* spans = instance.spans()) {
    record.host_spans = spans->recorded();
    record.dropped = spans->dropped();
  }
  if (StepTimer* timer = instance.backend().step_timer()) {
    const DeviceTimes times = timer->stop();
    const Worker& worker = instance.worker();
    record.device_spans = device_spans(times, worker.last_step(), instance.spans()->window(),
                                       worker.edge().previous(), worker.edge().next());
    record.device_error = times.clock_error;
  }
  const ClockOffset late = align_clock(*instance.world().control);
  return gather_tracks(instance.world(), record, early_, late);
}

}  // namespace trireme
