#include "kernels/cuda/device_logits.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "kernels/cuda/check.h"

namespace trireme::cuda {
namespace {

size_t align(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Room for more, so that growth is rare.
size_t roomy(size_t bytes) { return align(2 * bytes); }

}  // namespace

void Staged::reserve(size_t bytes, Backend& backend) {
  if (bytes <= device_.size()) return;
  if (!device_.empty()) outgrown_.emplace_back(std::move(host_), std::move(device_));
  const size_t size = roomy(bytes);
  void* memory = nullptr;
  TRIREME_CUDA(cudaMallocHost(&memory, size));
  host_.reset(static_cast<std::byte*>(memory));
  device_ = backend.allocate(size);
}

DeviceLogitRows::DeviceLogitRows(Backend& backend, int device, cudaStream_t stream, int32_t* newest,
                                 const PeerLanes& lanes)
    : backend_(backend), device_(device), stream_(stream), newest_(newest), lanes_(lanes) {
  void* memory = nullptr;
  TRIREME_CUDA(cudaSetDevice(device_));
  load_cuts(lanes_.size);
  load_logit_scan();
  load_adjust();
  load_choose(lanes_.size);
  cut_bins_ = backend_.allocate(cut_bins_bytes(ChosenTokens::kMost));
  cut_lists_ = backend_.allocate(cut_lists_bytes(ChosenTokens::kMost));
  TRIREME_CUDA(cudaMallocHost(&memory, sizeof(ChosenTokens) * kInFlight));
  chosen_ = new (memory) ChosenTokens[kInFlight];
}

DeviceLogitRows::~DeviceLogitRows() {
  cudaStreamSynchronize(stream_);
  cudaFreeHost(chosen_);
}

void DeviceLogitRows::reserve(Buffer& buffer, size_t bytes, bool zeroed) {
  if (bytes <= buffer.size()) return;
  if (!buffer.empty()) outgrown_.push_back(std::move(buffer));
  buffer = backend_.allocate(roomy(bytes));
  if (zeroed) TRIREME_CUDA(cudaMemsetAsync(buffer.data(), 0, buffer.size(), stream_));
}

void DeviceLogitRows::attach(MatrixView logits, int64_t vocab_begin) {
  if (logits.dtype != DType::kF32 || vocab_begin + logits.cols > std::numeric_limits<int>::max()) {
    fail(ErrorCode::kInternal, "sampling: logits must be float32, and tokens 31 bits");
  }
  TRIREME_CUDA(cudaSetDevice(device_));  // the thread may be a new one
  rows_.resize(std::max(rows_.size(), static_cast<size_t>(logits.rows)));
  for (Row& row : rows_) row.maxima = false, row.entries = 0;
  turn_ = (turn_ + 1) % adjustments_.size();
  const auto groups = static_cast<size_t>(std::max(logit_groups(logits.cols), 64));
  reserve(group_max_, static_cast<size_t>(logits.rows) * groups * sizeof(float));
  logits_ = {logits.f32(), logits.stride, static_cast<int32_t>(logits.cols),
             static_cast<int32_t>(vocab_begin), reinterpret_cast<float*>(group_max_.data())};
}

// The entries of one row, from number `count`; returns the number after the last.
int32_t DeviceLogitRows::add_entries(const LogitAdjustment& from, AdjustRow& row,
                                     AdjustEntry* entries, int32_t count) const {
  const auto add = [&](int32_t token, float bias, int32_t generated) {
    const int64_t index = int64_t{token} - logits_.vocab_begin;
    if (index < 0 || index >= logits_.vocab) return;
    entries[count++] = {static_cast<int32_t>(index), bias, generated};
  };
  row.row = from.row;
  row.restricts = from.allowed.empty() ? 0 : 1;
  row.repetition_penalty = from.repetition_penalty;
  row.presence_penalty = from.presence_penalty;
  row.frequency_penalty = from.frequency_penalty;
  row.newest_slot = from.newest_slot;
  row.allowed = count;
  for (const int32_t token : from.allowed) add(token, 0.0f, 0);
  row.banned = count;
  for (const int32_t token : from.banned) add(token, 0.0f, 0);
  row.bias = count;
  for (const auto& [token, bias] : from.bias) add(token, bias, 0);
  row.counts = count;
  const auto by_index = [](const AdjustEntry& a, const AdjustEntry& b) {
    return a.index < b.index;
  };
  if (!std::is_sorted(entries + row.bias, entries + row.counts, by_index)) {
    std::stable_sort(entries + row.bias, entries + row.counts, by_index);
  }
  for (const TokenCount& entry : from.counts) add(entry.token, 0.0f, entry.generated);
  row.stop = count;
  for (const int32_t token : from.stop) add(token, 0.0f, 0);
  row.end = count;
  return count;
}

void DeviceLogitRows::adjust(std::span<const LogitAdjustment> adjustments) {
  size_t most = 0;
  for (const LogitAdjustment& one : adjustments) {
    most += one.allowed.size() + one.banned.size() + one.bias.size() + one.counts.size() +
            one.stop.size();
  }
  if (most > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    fail(ErrorCode::kInternal, "sampling: {} adjustments in one step", most);
  }
  const size_t entries_at = align(adjustments.size() * sizeof(AdjustRow));
  Staged& staged = adjustments_[turn_];
  staged.reserve(entries_at + most * sizeof(AdjustEntry), backend_);
  reserve(raw_, most * sizeof(float));
  auto* adjusted = reinterpret_cast<AdjustRow*>(staged.host());
  auto* entries = reinterpret_cast<AdjustEntry*>(staged.host() + entries_at);
  int32_t count = 0;
  for (size_t i = 0; i < adjustments.size(); ++i) {
    adjusted[i] = {};
    const int32_t first = count;
    count = add_entries(adjustments[i], adjusted[i], entries, count);
    Row& row = rows_[static_cast<size_t>(adjustments[i].row)];
    row.maxima = false;
    row.first_entry = first;
    row.entries = count - first;
  }
  entries_ = reinterpret_cast<const AdjustEntry*>(staged.device() + entries_at);
  TRIREME_CUDA(cudaMemcpyAsync(staged.device(), staged.host(),
                               entries_at + static_cast<size_t>(count) * sizeof(AdjustEntry),
                               cudaMemcpyHostToDevice, stream_));
  launch_adjust(logits_, reinterpret_cast<const AdjustRow*>(staged.device()),
                static_cast<int32_t>(adjustments.size()), entries_, newest_,
                reinterpret_cast<float*>(raw_.data()), stream_);
}

DeviceLogitRows::Family DeviceLogitRows::family_of(LogitQuestion::Kind kind) {
  switch (kind) {
    case LogitQuestion::Kind::kBucketMasses: return kMasses;
    case LogitQuestion::Kind::kBucket: return kBucket;
    case LogitQuestion::Kind::kTop: return kTop;
    case LogitQuestion::Kind::kRaw: return kRaw;
    default: return kScan;
  }
}

// But for the places of its results.
LogitTask DeviceLogitRows::task_of(const LogitQuestion& question) const {
  const Row& row = rows_[static_cast<size_t>(question.row)];
  LogitTask task;
  task.row = question.row;
  task.max = question.max;
  task.inverse_temperature = question.inverse_temperature;
  task.within = question.within;
  switch (question.kind) {
    case LogitQuestion::Kind::kBest: task.kind = LogitTask::kBest; break;
    case LogitQuestion::Kind::kMass: task.kind = LogitTask::kMass; break;
    case LogitQuestion::Kind::kDraw:
      task.kind = LogitTask::kDraw;
      task.draw = question.draw;
      break;
    case LogitQuestion::Kind::kBucketMasses: task.kind = LogitTask::kBucketMasses; break;
    case LogitQuestion::Kind::kBucket:
      if (row.bucket_counts.empty()) fail_internal("sampling: buckets before their masses");
      task.kind = LogitTask::kBucket;
      task.which = question.which;
      task.count = row.bucket_counts[static_cast<size_t>(question.which)];
      break;
    case LogitQuestion::Kind::kTop:
      if (!row.maxima) fail_internal("sampling: the best logits of a row that was not looked at");
      task.kind = LogitTask::kTop;
      task.count = static_cast<int32_t>(std::min<int64_t>(question.count, logits_.vocab));
      break;
    case LogitQuestion::Kind::kRaw:
      task.kind = LogitTask::kRaw;
      task.which = question.token - logits_.vocab_begin;
      task.place = row.first_entry;
      task.count = row.entries;
      break;
  }
  return task;
}

// Writes the tasks, family by family, and lays out their results.
DeviceLogitRows::Layout DeviceLogitRows::plan(std::span<const LogitQuestion> questions) {
  Layout layout;
  tasks_.reserve(questions.size() * sizeof(LogitTask), backend_);
  auto* tasks = reinterpret_cast<LogitTask*>(tasks_.host());
  order_.clear();
  int32_t places = 0;
  int64_t listed = 0;
  for (int family = 0; family < kFamilies; ++family) {
    layout.first[static_cast<size_t>(family)] = static_cast<int32_t>(order_.size());
    for (size_t i = 0; i < questions.size(); ++i) {
      if (family_of(questions[i].kind) != family) continue;
      LogitTask task = task_of(questions[i]);
      layout.draws |= task.kind == LogitTask::kDraw;
      if (family == kMasses) task.place = places++;
      if (family == kTop || family == kBucket) {
        task.list = listed;
        listed += task.count;
      }
      tasks[order_.size()] = task;
      order_.push_back(static_cast<int32_t>(i));
    }
  }
  layout.first[kFamilies] = static_cast<int32_t>(order_.size());
  const size_t sums = static_cast<size_t>(places) * kMassBuckets;
  layout.masses = questions.size() * sizeof(LogitAnswer);
  layout.counts = layout.masses + sums * sizeof(int64_t);
  layout.lists = layout.counts + sums * sizeof(int32_t);
  layout.end = layout.lists + static_cast<size_t>(listed) * sizeof(Candidate);
  results_.reserve(layout.end, backend_);
  const size_t parts = static_cast<size_t>(std::max(logit_parts(logits_.vocab), 1));
  reserve(partial_, questions.size() * parts * sizeof(LogitAnswer));
  reserve(arrivals_, questions.size() * sizeof(uint32_t), true);
  return layout;
}

void DeviceLogitRows::launch(const Layout& layout, int32_t count) {
  TRIREME_CUDA(cudaMemcpyAsync(tasks_.device(), tasks_.host(),
                               static_cast<size_t>(count) * sizeof(LogitTask),
                               cudaMemcpyHostToDevice, stream_));
  const auto* tasks = reinterpret_cast<const LogitTask*>(tasks_.device());
  auto* answers = reinterpret_cast<LogitAnswer*>(results_.device());
  auto* lists = reinterpret_cast<Candidate*>(results_.device() + layout.lists);
  const auto first = [&](int family) { return layout.first[static_cast<size_t>(family)]; };
  const auto size = [&](int family) { return first(family + 1) - first(family); };
  if (size(kMasses) + size(kBucket) > 0) {
    TRIREME_CUDA(cudaMemsetAsync(results_.device(), 0, layout.lists, stream_));
  }
  launch_logit_scan(logits_, tasks, size(kScan), layout.draws,
                    {reinterpret_cast<LogitAnswer*>(partial_.data()),
                     reinterpret_cast<uint32_t*>(arrivals_.data())},
                    answers, stream_);
  launch_bucket_masses(logits_, tasks + first(kMasses), size(kMasses),
                       reinterpret_cast<int64_t*>(results_.device() + layout.masses),
                       reinterpret_cast<int32_t*>(results_.device() + layout.counts), stream_);
  launch_bucket(logits_, tasks + first(kBucket), size(kBucket), lists, answers + first(kBucket),
                stream_);
  launch_logit_top(logits_, tasks + first(kTop), size(kTop), lists, answers + first(kTop), stream_);
  launch_raw(logits_, tasks + first(kRaw), size(kRaw), entries_,
             reinterpret_cast<const float*>(raw_.data()), answers + first(kRaw), stream_);
  TRIREME_CUDA(cudaMemcpyAsync(results_.host(), results_.device(), layout.end,
                               cudaMemcpyDeviceToHost, stream_));
  TRIREME_CUDA(cudaStreamSynchronize(stream_));
}

void DeviceLogitRows::deliver(LogitQuestion& question, const LogitTask& task,
                              const LogitAnswer& answer, const Layout& layout) {
  Row& row = rows_[static_cast<size_t>(question.row)];
  switch (question.kind) {
    case LogitQuestion::Kind::kBest:
      question.best = answer.token < 0 ? Candidate{} : Candidate{answer.logit, answer.token};
      row.maxima = true;
      break;
    case LogitQuestion::Kind::kMass: question.mass = answer.value; break;
    case LogitQuestion::Kind::kDraw:
      question.drawn =
          answer.token < 0 ? Scored{} : Scored{std::bit_cast<double>(answer.value), answer.token};
      break;
    case LogitQuestion::Kind::kBucketMasses: {
      const auto place = static_cast<size_t>(task.place) * kMassBuckets;
      const auto* masses =
          reinterpret_cast<const int64_t*>(results_.host() + layout.masses) + place;
      for (size_t b = 0; b < question.masses.size(); ++b) question.masses[b] += masses[b];
      const auto* counts =
          reinterpret_cast<const int32_t*>(results_.host() + layout.counts) + place;
      row.bucket_counts.assign(counts, counts + kMassBuckets);
      break;
    }
    case LogitQuestion::Kind::kBucket:
    case LogitQuestion::Kind::kTop: {
      if (answer.token < 0 || answer.token > task.count) {
        fail(ErrorCode::kInternal, "sampling: a list of {} has {}", task.count, answer.token);
      }
      const auto* list =
          reinterpret_cast<const Candidate*>(results_.host() + layout.lists) + task.list;
      question.list->assign(list, list + answer.token);
      if (question.kind == LogitQuestion::Kind::kBucket) break;
      question.left_out = (answer.value & kTopLeftOut) != 0;
      if ((answer.value & kTopUnsorted) == 0) break;
      std::sort(question.list->begin(), question.list->end(),
                [](const Candidate& a, const Candidate& b) { return better(a, b); });
      break;
    }
    case LogitQuestion::Kind::kRaw: question.raw = answer.logit; break;
  }
}

void DeviceLogitRows::answer(std::span<LogitQuestion> questions) {
  if (questions.empty()) return;
  const Layout layout = plan(questions);
  launch(layout, static_cast<int32_t>(questions.size()));
  const auto* tasks = reinterpret_cast<const LogitTask*>(tasks_.host());
  const auto* answers = reinterpret_cast<const LogitAnswer*>(results_.host());
  for (size_t i = 0; i < questions.size(); ++i) {
    deliver(questions[static_cast<size_t>(order_[i])], tasks[i], answers[i], layout);
  }
}

}  // namespace trireme::cuda
