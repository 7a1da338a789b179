// DeviceLogitRows as a LogitChooser: what is chosen stays on the device for the next step, and the
// host hears of it when it asks.
#include <algorithm>
#include <atomic>

#include "base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/device_logits.h"
#include "kernels/cuda/elementwise.h"

namespace trireme::cuda {
namespace {

constexpr size_t align16(size_t bytes) { return (bytes + 15) / 16 * 16; }

void add_cut(const LogitChoice& choice, int32_t index, Cut* cuts, LaunchCuts& all) {
  Cut cut;
  cut.row = choice.row;
  cut.choice = index;
  cut.top_k = choice.top_k;
  cut.top_p = choice.top_p;
  cut.inverse_temperature = choice.inverse_temperature;
  cuts[all.count++] = cut;
  const int32_t rounds = (choice.top_k > 0 ? 1 : 0) + (choice.top_p < 1.0f ? 1 : 0);
  all.rounds = std::max(all.rounds, rounds);
}

}  // namespace

size_t DeviceLogitRows::most_choices(int ranks) const {
  if (ranks == 1) return ChosenTokens::kMost;
  // A choice travels as one vector of a lane.
  if (lanes_.size != ranks) return 0;
  return std::min<size_t>(ChosenTokens::kMost, static_cast<size_t>(lanes_.packets / 2));
}

DeviceLogitRows::Choices& DeviceLogitRows::choices_of(uint64_t number) {
  Choices& choices = choices_[number % kInFlight];
  if (choices.number != number || choices.taken) {
    fail(ErrorCode::kInternal, "sampling: choices {} are not on their way", number);
  }
  return choices;
}

uint64_t DeviceLogitRows::choose(std::span<const LogitChoice> wanted) {
  const uint64_t number = ++last_number_;
  Choices& choices = choices_[number % kInFlight];
  if (!choices.taken) fail_internal("sampling: too many choices are not taken");
  if (wanted.empty() || wanted.size() > ChosenTokens::kMost) {
    fail(ErrorCode::kInternal, "sampling: {} choices at a time", wanted.size());
  }
  choices.number = number;
  choices.count = wanted.size();
  choices.taken = false;
  const size_t task_bytes = align16(wanted.size() * sizeof(LogitTask));
  choices.tasks.reserve(task_bytes + wanted.size() * sizeof(Cut), backend_);
  auto* tasks = reinterpret_cast<LogitTask*>(choices.tasks.host());
  auto* cuts = reinterpret_cast<Cut*>(choices.tasks.host() + task_bytes);
  const size_t parts = static_cast<size_t>(std::max(logit_parts(logits_.vocab), 1));
  reserve(partial_, wanted.size() * parts * sizeof(LogitAnswer));
  reserve(arrivals_, wanted.size() * sizeof(uint32_t), true);
  reserve(answers_, ChosenTokens::kMost * sizeof(LogitAnswer));
  LaunchCuts cut;
  bool draws = false;
  for (size_t i = 0; i < wanted.size(); ++i) {
    LogitTask task;
    task.row = wanted[i].row;
    task.slot = wanted[i].slot;
    task.kind = wanted[i].draws ? LogitTask::kDraw : LogitTask::kBest;
    task.draw = wanted[i].draw;
    draws = draws || wanted[i].draws;
    tasks[i] = task;
    if (wanted[i].is_cut()) add_cut(wanted[i], static_cast<int32_t>(i), cuts, cut);
  }
  Pieces pieces;
  pieces.pieces[pieces.count++] = {
      choices.tasks.host(), choices.tasks.device(),
      static_cast<uint32_t>(task_bytes + static_cast<size_t>(cut.count) * sizeof(Cut))};
  launch_scatter(pieces, stream_);
  cut.lanes = lanes_;
  cut.rows = logits_;
  cut.tasks = reinterpret_cast<LogitTask*>(choices.tasks.device());
  cut.cuts = reinterpret_cast<Cut*>(choices.tasks.device() + task_bytes);
  cut.bins = reinterpret_cast<CutBin*>(cut_bins_.data());
  cut.lists = reinterpret_cast<Candidate*>(cut_lists_.data());
  launch_cuts(cut, stream_);
  const auto* on_device = reinterpret_cast<const LogitTask*>(choices.tasks.device());
  const auto count = static_cast<int32_t>(wanted.size());
  launch_logit_scan(logits_, on_device, count, draws,
                    {reinterpret_cast<LogitAnswer*>(partial_.data()),
                     reinterpret_cast<uint32_t*>(arrivals_.data())},
                    reinterpret_cast<LogitAnswer*>(answers_.data()), stream_);
  ChooseTokens choose;
  choose.lanes = lanes_;
  choose.tasks = on_device;
  choose.answers = reinterpret_cast<const LogitAnswer*>(answers_.data());
  choose.count = count;
  choose.newest = newest_;
  choose.chosen = &chosen_[number % kInFlight];
  choose.number = number;
  launch_choose(choose, stream_);
  return number;
}

bool DeviceLogitRows::done(uint64_t number) {
  const Choices& choices = choices_of(number);
  uint64_t& told = chosen_[choices.number % kInFlight].number;
  return std::atomic_ref<uint64_t>(told).load(std::memory_order_acquire) == number;
}

void DeviceLogitRows::take(uint64_t number, std::vector<int32_t>& tokens) {
  if (!done(number)) fail_internal("sampling: choices taken before they are done");
  Choices& choices = choices_of(number);
  const int32_t* told = chosen_[number % kInFlight].tokens;
  tokens.assign(told, told + choices.count);
  choices.taken = true;
}

}  // namespace trireme::cuda
