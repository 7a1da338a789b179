#include "parallel/ledger.h"

#include <time.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace trireme {
namespace {

using Word = std::atomic<uint64_t>;

// False if the slot holds another entry by now.
bool read(const std::array<Word, 8>& slot, std::array<uint64_t, 8>& words) {
  for (size_t i = 0; i < words.size(); ++i) words[i] = slot[i].load(std::memory_order_acquire);
  return words[0] != 0 && slot[0].load(std::memory_order_acquire) == words[0];
}

LedgerRecord record_of(const std::array<uint64_t, 8>& words) {
  LedgerRecord record;
  record.sequence = words[0];
  record.step = words[1];
  record.plan = words[2];
  record.call.bytes = words[3];
  record.call.number = words[4];
  record.call.op = static_cast<LedgerOp>(words[5] & 0xff);
  record.call.dtype = static_cast<DType>(words[5] >> 8 & 0xff);
  record.call.group = static_cast<int16_t>(words[5] >> 16 & 0xffff);
  record.call.peer = static_cast<int32_t>(words[5] >> 32);
  record.begin = static_cast<int64_t>(words[6]);
  record.end = static_cast<int64_t>(words[7]);
  return record;
}

template <size_t kCount>
std::vector<LedgerStep> steps_of(const std::array<std::array<Word, 8>, kCount>& ring) {
  std::vector<std::pair<uint64_t, LedgerStep>> found;
  std::array<uint64_t, 8> words{};
  for (const std::array<Word, 8>& slot : ring) {
    if (!read(slot, words)) continue;
    found.push_back({words[0],
                     {words[1], words[2], static_cast<int64_t>(words[3]),
                      static_cast<int64_t>(words[4]), words[5]}});
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<LedgerStep> steps;
  for (const auto& [count, step] : found) steps.push_back(step);
  return steps;
}

}  // namespace

const char* to_string(LedgerOp op) {
  switch (op) {
    case LedgerOp::kAllReduce: return "all_reduce_sum";
    case LedgerOp::kAllGather: return "all_gather";
    case LedgerOp::kBroadcast: return "broadcast";
    case LedgerOp::kBarrier: return "barrier";
    case LedgerOp::kSplit: return "split";
    case LedgerOp::kSend: return "send";
    case LedgerOp::kReceive: return "recv";
    case LedgerOp::kProbe: return "probe";
    case LedgerOp::kIdle: return "wait for an order";
    case LedgerOp::kDevice: return "wait for the device";
  }
  return "?";
}

int64_t Ledger::now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

int16_t Ledger::add_group(std::string name, std::vector<int32_t> ranks) {
  const std::lock_guard lock(mutex_);
  if (groups_.size() == kGroups) fail(ErrorCode::kInternal, "ledger: more groups than a world has");
  groups_.push_back({std::move(name), std::move(ranks)});
  return static_cast<int16_t>(groups_.size() - 1);
}

std::vector<LedgerGroup> Ledger::groups() const {
  const std::lock_guard lock(mutex_);
  return groups_;
}

void Ledger::play(const std::vector<LedgerCall>& tape) {
  for (LedgerCall call : tape) {
    if (call.number != 0) call.number = next_number(call.group);
    begin(call);
    end();
  }
}

void Ledger::begin_step(uint64_t step, uint64_t plan) {
  step_ = step;
  plan_ = plan;
  const auto write = [this](std::array<Words, kSteps>& ring, uint64_t count) {
    Words& slot = ring[count % kSteps];
    slot[0].store(0, std::memory_order_relaxed);
    put(slot[1], step_);
    put(slot[2], plan_);
    put(slot[3], static_cast<uint64_t>(now()));
    put(slot[4], 0);
    put(slot[5], queued_);
    put(slot[0], count);
  };
  write(steps_, ++step_count_);
  if (step % kSteps == 0) write(marks_, ++mark_count_);
}

void Ledger::end_step(uint64_t step) {
  for (uint64_t count = step_count_; count > 0 && count + kSteps > step_count_; --count) {
    Words& slot = steps_[count % kSteps];
    if (slot[1].load(std::memory_order_relaxed) != step) continue;
    put(slot[4], static_cast<uint64_t>(now()));
    return;
  }
}

LedgerView Ledger::view(size_t operations) const {
  LedgerView view;
  std::array<uint64_t, 8> words{};
  for (const Words& slot : operations_) {
    if (read(slot, words)) view.operations.push_back(record_of(words));
  }
  std::sort(view.operations.begin(), view.operations.end(),
            [](const auto& a, const auto& b) { return a.sequence < b.sequence; });
  if (view.operations.size() > operations) {
    view.operations.erase(view.operations.begin(),
                          view.operations.end() - static_cast<std::ptrdiff_t>(operations));
  }
  view.steps = steps_of(steps_);
  view.marks = steps_of(marks_);
  view.now = now();
  return view;
}

}  // namespace trireme
