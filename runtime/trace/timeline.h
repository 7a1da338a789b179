// The spans of all ranks on one clock, and what they say: who computed, communicated or waited when.
//
// A collective lasts from when its last rank has come; before that its ranks wait. A message is
// received from when it was sent; before that its receiver waits. On devices a send waits for its
// receiver as well. What is left of a rank's time, between its spans, is idle.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/spans.h"
#include "parallel/clock.h"
#include "parallel/world.h"

namespace trireme {

// One rank's record, in ns of rank 0's steady clock.
struct RankTrack {
  int rank = 0;
  int stage = 0;
  int tensor_rank = 0;
  int tensor_first = 0;  // world rank of the stage's first tensor rank
  std::string host;
  int64_t clock_error = 0;   // ns
  int64_t device_error = 0;  // ns, of the device's clock to its host's
  uint64_t dropped = 0;
  std::vector<Span> host_spans;    // of the rank's thread; one may lie within another
  std::vector<Span> device_spans;  // of its device; empty where ops run on the host
};

// What a rank brings along.
struct RankRecord {
  std::vector<Span> host_spans;
  std::vector<Span> device_spans;
  uint64_t dropped = 0;
  int64_t device_error = 0;
};

// Collective over the world; the tracks of all ranks on rank 0, nothing elsewhere. The clocks are
// those of the run's begin and end.
std::vector<RankTrack> gather_tracks(World& world, const RankRecord& mine, const ClockOffset& early,
                                     const ClockOffset& late);

// Rows of a rank's picture.
enum class Lane : uint8_t { kStep, kHost, kCompute, kCommunication, kSend, kReceive, kIdle };
const char* to_string(Lane lane);

struct Segment {
  Span span;
  Lane lane = Lane::kIdle;
};

// One rank's time cut into segments: those of a lane do not overlap. Where the rank has a device,
// compute, communication and idle are the device's (send and receive in lanes of their own, as they
// may overlap), and kHost holds all that its thread did. kIdle fills what no other lane but kStep
// and kHost covers; a wait within an operation is named after it. kStep: from when a step's plan is
// there to the last that is done for it.
struct RankRows {
  const RankTrack* track = nullptr;
  std::vector<Segment> segments;  // by lane, then by time
};
std::vector<RankRows> cut_rows(const std::vector<RankTrack>& tracks);  // which must outlive them
std::vector<RankRows> cut_rows(std::vector<RankTrack>&&) = delete;

}  // namespace trireme
