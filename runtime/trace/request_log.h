// The lives of sequences as rank 0 sees them: queued, prefill chunks, decode rows.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <vector>

#include "base/spans.h"
#include "runtime/scheduler.h"
#include "runtime/sequence.h"
#include "runtime/step_plan.h"

namespace trireme {

enum class RequestPhase : uint8_t { kQueued, kPrefill, kDecode };

// From when a row was planned to when its result was there, in ns of rank 0's steady clock; of a
// queued sequence, from its submission to its first row.
struct RequestSpan {
  RequestPhase phase = RequestPhase::kQueued;
  int64_t begin = 0;
  int64_t end = 0;
  uint64_t step = 0;
  int32_t position = 0;  // of the row's first token
  int32_t count = 0;     // tokens
};

struct RequestLife {
  SequenceId id = 0;
  std::vector<RequestSpan> spans;  // in order, none overlaps the next
};

// Holds the rows of the steps of `window`, `rows` at most; what does not fit is counted. submitted()
// may be called from any thread, everything else from the engine's.
class RequestLog {
 public:
  RequestLog(StepWindow window, size_t rows);

  void submitted(SequenceId id);
  void planned(const StepPlan& plan);
  // `events` are those of the step's result, with the pointers that Scheduler::apply() gave.
  void applied(uint64_t step, std::span<const SequenceEvent> events);

  // By id; only sequences with a row in the window whose result has come.
  std::vector<RequestLife> lives() const;
  uint64_t dropped() const { return dropped_; }

 private:
  struct Row {
    size_t life = 0;
    RequestSpan span;
  };
  struct Life {
    SequenceId id = 0;  // 0: no event has told it yet
    int32_t prompt_tokens = 0;
    uint64_t admitted = 0;  // step
  };
  struct Submission {
    SequenceId id = 0;
    int64_t time = 0;
  };
  struct Flight {
    uint64_t step = 0;
    size_t first = 0, count = 0;  // of rows_
  };

  StepWindow window_;
  size_t most_rows_;
  std::vector<Row> rows_;
  std::vector<Life> lives_;
  std::vector<size_t> slot_life_;
  std::deque<Flight> flights_;
  uint64_t dropped_ = 0;
  mutable std::mutex mutex_;  // submissions_
  std::vector<Submission> submissions_;
};

}  // namespace trireme
