// The records of all live requests, of those that ended a while ago, and of those that are here no
// more but that slow readers still hold.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "runtime/request_record.h"

namespace trireme {

class RecordStore {
 public:
  // An ended record goes after `keep`, or before that when ended records hold more than
  // `max_ended_bytes`: then first the readers of those that are gone are told to leave, the longest
  // gone first, and then the oldest go.
  RecordStore(std::chrono::milliseconds keep, int64_t max_ended_bytes);
  ~RecordStore();

  // Throws kAlreadyExists if the id is known.
  void add(std::shared_ptr<RequestRecord> record);
  std::shared_ptr<RequestRecord> find(const std::string& id) const;  // null if unknown
  void remove(const RequestRecord& record);  // a live one that was never accepted
  void mark_ended(const std::shared_ptr<RequestRecord>& record);  // once per record

  std::vector<std::shared_ptr<RequestRecord>> live() const;
  int32_t live_count() const { return live_count_.load(std::memory_order_relaxed); }
  // Of ended records, as far as anybody holds them.
  int64_t ended_bytes() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Entry {
    std::shared_ptr<RequestRecord> record;
    bool ended = false;
  };
  struct Ended {
    Clock::time_point until;
    std::shared_ptr<RequestRecord> record;
    int64_t bytes;
  };

  struct Held {
    std::weak_ptr<RequestRecord> record;
    int64_t bytes;
  };

  void drop_oldest(std::vector<std::shared_ptr<RequestRecord>>& dropped);
  int64_t held_bytes() const;  // forgets those that nobody holds any more
  void run();                  // drops what is over its time

  const std::chrono::milliseconds keep_;
  const int64_t max_ended_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::unordered_map<std::string, Entry> records_;
  std::deque<Ended> ended_;
  mutable std::deque<Held> held_;  // dropped, in that order
  std::atomic<int32_t> live_count_{0};
  int64_t ended_bytes_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace trireme
