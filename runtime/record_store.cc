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
  std::vector<std::shared_ptr<RequestRecord>> dropped;  // freed with no lock held
  std::lock_guard lock(mutex_);
  const auto at = records_.find(record->config().request_id);
  if (at == records_.end() || at->second.record != record || at->second.ended) return;
  at->second.ended = true;
  live_count_.fetch_sub(1, std::memory_order_relaxed);
  ended_.push_back({Clock::now() + keep_, record, bytes});
  ended_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  while (!ended_.empty() && ended_bytes() > max_ended_bytes_) drop_oldest(dropped);
  if (ended_.size() == 1) wake_.notify_one();
}

void RecordStore::drop_oldest(std::vector<std::shared_ptr<RequestRecord>>& dropped) {
  Ended& oldest = ended_.front();
  ended_bytes_.fetch_sub(oldest.bytes, std::memory_order_relaxed);
  records_.erase(oldest.record->config().request_id);
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
