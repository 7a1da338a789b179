#include "base/spans.h"

namespace trireme {

const char* to_string(SpanKind kind) {
  switch (kind) {
    case SpanKind::kPlan: return "plan";
    case SpanKind::kPrepare: return "prepare";
    case SpanKind::kLayers: return "layers";
    case SpanKind::kSample: return "head and sampling";
    case SpanKind::kResult: return "result";
    case SpanKind::kAllReduce: return "all_reduce";
    case SpanKind::kAllGather: return "all_gather";
    case SpanKind::kBroadcast: return "broadcast";
    case SpanKind::kBarrier: return "barrier";
    case SpanKind::kSend: return "send";
    case SpanKind::kReceive: return "recv";
    case SpanKind::kWait: return "wait";
  }
  return "?";
}

const char* to_string(SpanLink link) {
  switch (link) {
    case SpanLink::kNone: return "";
    case SpanLink::kControl: return "control";
    case SpanLink::kData: return "data";
    case SpanLink::kTensor: return "tp";
  }
  return "?";
}

void SpanRecorder::enter(uint64_t step) {
  step_ = step;
  entered_ = true;
  open_ = window_.contains(step);
  if (!open_) {
    spans_.resize(loose_);
    return;
  }
  for (size_t i = loose_; i < spans_.size(); ++i) spans_[i].step = step;
  loose_ = spans_.size();
}

void SpanRecorder::leave() {
  loose_ = spans_.size();
  entered_ = false;
  // After the window's last step nothing is led to any more.
  open_ = step_ + 1 < window_.first + window_.count || step_ < window_.first;
}

}  // namespace trireme
