#include "runtime/record_store.h"

#include <utility>

#include "base/error.h"

namespace trireme {

RecordStore::RecordStore(std::chrono::milliseconds keep, int64_t max_ended_bytes)
    : keep_(keep), max_ended_bytes_(max_ended_bytes), thread_([this] { run(); }) {}

RecordStore::~RecordStore() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void RecordStore::add(std::shared_ptr<RequestRecord> record) {
  std::lock_guard lock(mutex_);
  const std::string& id = record->config().request_id;
  const auto [at, added] = records_.try_emplace(id, Entry{record, false});
  if (!added) {
    fail(ErrorCode::kAlreadyExists, "request_id \"{}\" is {}", id,
         at->second.ended ? "that of a request that ended a moment ago: attach to it" : "in use");
  }
  live_count_.fetch_add(1, std::memory_order_relaxed);
}

std::shared_ptr<RequestRecord> RecordStore::find(const std::string& id) const {
  std::lock_guard lock(mutex_);
  const auto at = records_.find(id);
  return at == records_.end() ? nullptr : at->second.record;
}

void RecordStore::remove(const RequestRecord& record) {
  std::lock_guard lock(mutex_);
  const auto at = records_.find(record.config().request_id);
  if (at == records_.end() || at->second.record.get() != &record || at->second.ended) return;
  records_.erase(at);
  live_count_.fetch_sub(1, std::memory_order_relaxed);
}

void RecordStore::mark_ended(const std::shared_ptr<RequestRecord>& record) {
  const int64_t bytes = record->bytes();
  std::vector<std::shared_ptr<RequestRecord>> dropped, given_up;  // freed with no lock held
  {
    std::lock_guard lock(mutex_);
    const auto at = records_.find(record->config().request_id);
    if (at == records_.end() || at->second.record != record || at->second.ended) return;
    at->second.ended = true;
    live_count_.fetch_sub(1, std::memory_order_relaxed);
    ended_.push_back({Clock::now() + keep_, record, bytes});
    ended_bytes_ += bytes;
    int64_t held = held_bytes();
    while (ended_bytes_ + held > max_ended_bytes_ && !(held_.empty() && ended_.empty())) {
      if (held_.empty()) {
        drop_oldest(dropped);  // which may be held from now on
        held = held_.empty() ? 0 : held_.back().bytes;
        continue;
      }
      if (auto oldest = held_.front().record.lock()) given_up.push_back(std::move(oldest));
      held -= held_.front().bytes;
      held_.pop_front();
    }
    if (ended_.size() == 1) wake_.notify_one();
  }
  RequestRecord::Callbacks due;
  for (const auto& one : given_up) one->give_up(due);
  for (const auto& leave : due) leave();
}

int64_t RecordStore::held_bytes() const {
  std::erase_if(held_, [](const Held& held) { return held.record.expired(); });
  int64_t sum = 0;
  for (const Held& held : held_) sum += held.bytes;
  return sum;
}

int64_t RecordStore::ended_bytes() const {
  std::lock_guard lock(mutex_);
  return ended_bytes_ + held_bytes();
}

void RecordStore::drop_oldest(std::vector<std::shared_ptr<RequestRecord>>& dropped) {
  Ended& oldest = ended_.front();
  ended_bytes_ -= oldest.bytes;
  records_.erase(oldest.record->config().request_id);
  // Here, and with whoever reads it. (A reader that goes just now is noticed at the next look.)
  if (oldest.record.use_count() > 1) held_.push_back({oldest.record, oldest.bytes});
  dropped.push_back(std::move(oldest.record));
  ended_.pop_front();
}

std::vector<std::shared_ptr<RequestRecord>> RecordStore::live() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<RequestRecord>> live;
  for (const auto& [id, entry] : records_) {
    if (!entry.ended) live.push_back(entry.record);
  }
  return live;
}

void RecordStore::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (ended_.empty()) {
      wake_.wait(lock, [this] { return stopping_ || !ended_.empty(); });
      continue;
    }
    const Clock::time_point until = ended_.front().until;
    if (Clock::now() < until) {
      wake_.wait_until(lock, until, [this] { return stopping_; });
      continue;
    }
    std::vector<std::shared_ptr<RequestRecord>> dropped;
    while (!ended_.empty() && ended_.front().until <= Clock::now()) drop_oldest(dropped);
    lock.unlock();
    dropped.clear();
    lock.lock();
  }
}

}  // namespace trireme
