// What a rank did when: spans of its step loop, recorded for a picture of it (runtime/trace).
//
// A recorder belongs to one thread of one rank. Its memory is fixed when it is made: once it is
// full, spans are counted and dropped. Where nothing is recorded there is no recorder, and a
// SpanScope over a null pointer does nothing.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace trireme {

enum class SpanKind : uint8_t {
  // Computing.
  kPlan,     // rank 0 chooses a step's work, and encodes it
  kPrepare,  // a plan is decoded, slots and batch are brought up to date
  kLayers,   // this stage's layers; on a device's host: they are queued
  kSample,   // head and sampling
  kResult,   // results are encoded, applied and handed out
  // Communicating; `bytes` are those of the call.
  kAllReduce,
  kAllGather,
  kBroadcast,
  kBarrier,
  kSend,
  kReceive,
  // Neither: nothing is there yet.
  kWait,
};
inline bool is_communication(SpanKind kind) {
  return kind >= SpanKind::kAllReduce && kind <= SpanKind::kReceive;
}
inline bool is_computation(SpanKind kind) { return kind < SpanKind::kAllReduce; }
const char* to_string(SpanKind kind);

// Among whom a span's message travels.
enum class SpanLink : uint8_t { kNone, kControl, kData, kTensor };
const char* to_string(SpanLink link);

struct Span {
  int64_t begin = 0;  // ns of the steady clock
  int64_t end = 0;
  uint64_t step = 0;
  int64_t bytes = 0;
  int32_t peer = -1;  // rank in the link's group; -1: all of it
  SpanKind kind = SpanKind::kWait;
  SpanLink link = SpanLink::kNone;
};

// The steps to record: `count` from `first` on, which is counted from 1. None with a count of 0.
struct StepWindow {
  uint64_t first = 1;
  uint64_t count = 0;
  bool contains(uint64_t step) const { return step - first < count; }
};

class SpanRecorder {
 public:
  SpanRecorder(StepWindow window, size_t capacity) : window_(window) { spans_.reserve(capacity); }

  static int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  // A step begins: what was recorded since the last leave() led to it.
  void enter(uint64_t step);
  // It ends: what follows belongs to the step that comes next, whatever its number. Nothing is
  // recorded before the first call.
  void leave();

  void add(SpanKind kind, int64_t begin, int64_t end, SpanLink link = SpanLink::kNone,
           int32_t peer = -1, size_t bytes = 0) {
    if (!open_) return;
    if (spans_.size() == spans_.capacity()) {
      ++dropped_;
      return;
    }
    spans_.push_back({begin, end, step_, static_cast<int64_t>(bytes), peer, kind, link});
  }

  // In the order in which they ended, each with a step of the window.
  std::vector<Span> recorded() const {
    const size_t known = entered_ ? spans_.size() : loose_;
    return {spans_.begin(), spans_.begin() + static_cast<std::ptrdiff_t>(known)};
  }
  uint64_t dropped() const { return dropped_; }
  const StepWindow& window() const { return window_; }

 private:
  StepWindow window_;
  std::vector<Span> spans_;
  size_t loose_ = 0;  // spans from here on wait for their step's number
  uint64_t step_ = 0;
  uint64_t dropped_ = 0;
  bool entered_ = false;
  bool open_ = false;
};

// From here to the end of the scope. `recorder` may be null.
class SpanScope {
 public:
  SpanScope(SpanRecorder* recorder, SpanKind kind, SpanLink link = SpanLink::kNone,
            int32_t peer = -1, size_t bytes = 0)
      : recorder_(recorder), bytes_(bytes), peer_(peer), kind_(kind), link_(link) {
    if (recorder_ != nullptr) begin_ = SpanRecorder::now();
  }
  ~SpanScope() {
    if (recorder_ == nullptr) return;
    recorder_->add(kind_, begin_, SpanRecorder::now(), link_, peer_, bytes_);
  }
  SpanScope(const SpanScope&) = delete;
  SpanScope& operator=(const SpanScope&) = delete;

 private:
  SpanRecorder* recorder_;
  int64_t begin_ = 0;
  size_t bytes_;
  int32_t peer_;
  SpanKind kind_;
  SpanLink link_;
};

}  // namespace trireme
