#include "runtime/trace/request_log.h"

#include <algorithm>
#include <map>
#include <unordered_map>

namespace trireme {

RequestLog::RequestLog(StepWindow window, size_t rows) : window_(window), most_rows_(rows) {
  rows_.reserve(rows);
}

void RequestLog::submitted(SequenceId id) {
  const int64_t now = SpanRecorder::now();
  const std::lock_guard lock(mutex_);
  if (submissions_.size() < most_rows_) submissions_.push_back({id, now});
}

void RequestLog::planned(const StepPlan& plan) {
  for (const SlotInit& init : plan.admitted) {
    const auto slot = static_cast<size_t>(init.slot);
    if (slot >= slot_life_.size()) slot_life_.resize(slot + 1, 0);
    slot_life_[slot] = lives_.size();
    lives_.push_back({0, init.prompt_tokens, plan.step});
  }
  Flight flight{plan.step, rows_.size(), 0};
  const int64_t now = SpanRecorder::now();
  for (const PlanRow& row : plan.rows) {
    if (!window_.contains(plan.step)) break;
    if (rows_.size() == most_rows_) {
      ++dropped_;
      continue;
    }
    const size_t life = slot_life_.at(static_cast<size_t>(row.slot));
    const bool decode = row.count == 1 && row.position >= lives_[life].prompt_tokens;
    rows_.push_back({life,
                     {decode ? RequestPhase::kDecode : RequestPhase::kPrefill, now, 0, plan.step,
                      row.position, row.count}});
    ++flight.count;
  }
  flights_.push_back(flight);
}

void RequestLog::applied(uint64_t step, std::span<const SequenceEvent> events) {
  const int64_t now = SpanRecorder::now();
  while (!flights_.empty() && flights_.front().step <= step) {
    const Flight flight = flights_.front();
    flights_.pop_front();
    for (size_t i = 0; i < flight.count; ++i) rows_[flight.first + i].span.end = now;
  }
  // A slot has its next owner only after the step that ended the last one was applied.
  for (const SequenceEvent& event : events) {
    if (event.row == nullptr) continue;
    lives_[slot_life_.at(static_cast<size_t>(event.row->slot))].id = event.id;
  }
}

std::vector<RequestLife> RequestLog::lives() const {
  std::map<SequenceId, RequestLife> found;
  std::unordered_map<SequenceId, bool> queues;  // whether its first row is the one it waited for
  for (const Row& row : rows_) {
    const SequenceId id = lives_[row.life].id;
    if (id == 0 || row.span.end == 0) continue;
    RequestLife& life = found[id];
    if (life.id == 0) queues[id] = row.span.step == lives_[row.life].admitted;
    life.id = id;
    // The next chunk of a prompt, or the row after one that samples, may be planned meanwhile.
    if (!life.spans.empty()) {
      RequestSpan& before = life.spans.back();
      before.end = std::min(before.end, row.span.begin);
    }
    life.spans.push_back(row.span);
  }
  std::unordered_map<SequenceId, int64_t> submitted;
  {
    const std::lock_guard lock(mutex_);
    for (const Submission& one : submissions_) submitted.emplace(one.id, one.time);
  }
  std::vector<RequestLife> lives;
  for (auto& [id, life] : found) {
    const auto at = submitted.find(id);
    const RequestSpan first = life.spans.front();
    if (queues[id] && at != submitted.end() && at->second < first.begin) {
      life.spans.insert(life.spans.begin(),
                        {RequestPhase::kQueued, at->second, first.begin, first.step, 0, 0});
    }
    lives.push_back(std::move(life));
  }
  return lives;
}

}  // namespace trireme
