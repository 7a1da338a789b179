#include "launch/recording.h"

namespace trireme {

Recording::Recording(OfflineSession& session)
    : session_(session), early_(align_clock(*session.instance().world().control)) {}

std::vector<RankTrack> Recording::finish() {
  Instance& instance = session_.instance();
  RankRecord record;
  if (const SpanRecorder* spans = instance.spans()) {
    record.host_spans = spans->recorded();
    record.dropped = spans->dropped();
  }
  const ClockOffset late = align_clock(*instance.world().control);
  return gather_tracks(instance.world(), record, early_, late);
}

}  // namespace trireme
