// What a rank's step loop did last: rings of its operations, of its steps and, further back, of
// every so many steps. The loop's thread writes, without locks; the watchdog's reads, and tells
// from all ranks' ledgers why a world stands still.
//
// Every communicator of a World is recorded by a wrapper (ledger_communicator.h); what passes by
// the communicators (peer sums, waits for a device) is recorded where it is done. Times are of the
// kernel's coarse clock, which costs a quarter of the exact one and is right to a few milliseconds.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace trireme {

enum class LedgerOp : uint8_t {
  // Collectives: all ranks of the group, numbered.
  kAllReduce,
  kAllGather,
  kBroadcast,
  kBarrier,
  kSplit,
  // Messages: with a peer.
  kSend,
  kReceive,
  kProbe,  // waits for a message, with a deadline
  kIdle,   // waits for a message without one: nothing is owed
  // This rank alone.
  kDevice,  // waits for its device
};
inline bool is_collective(LedgerOp op) { return op <= LedgerOp::kSplit; }
const char* to_string(LedgerOp op);

// An operation as it was begun.
struct LedgerCall {
  LedgerOp op = LedgerOp::kBarrier;
  DType dtype = DType::kF32;  // of an all-reduce
  int16_t group = -1;         // of Ledger::groups(); -1: none
  int32_t peer = -1;          // rank in the group; -1: all
  uint64_t bytes = 0;
  uint64_t number = 0;  // of the group's collectives, from 1; 0: none
  bool queued = false;  // a device is given it, in the order of the steps; for collectives
};

struct LedgerRecord {
  LedgerCall call;
  uint64_t sequence = 0;  // of this rank's operations, from 1
  uint64_t step = 0;
  uint64_t plan = 0;  // hash of that step's plan
  int64_t begin = 0;  // ns, of this rank's clock
  int64_t end = 0;    // 0: under way, or it failed
};

struct LedgerStep {
  uint64_t step = 0;
  uint64_t plan = 0;  // hash
  int64_t begin = 0;
  int64_t end = 0;      // 0: not ended
  uint64_t queued = 0;  // collectives that the device had been given before
};

struct LedgerGroup {
  std::string name;
  std::vector<int32_t> ranks;  // of the world, by rank in the group
};

// What another thread sees, the oldest first.
struct LedgerView {
  int64_t now = 0;  // of the same clock
  std::vector<LedgerRecord> operations;
  std::vector<LedgerStep> steps;
  // Every kSteps-th step, by its number, as it began: `end` is 0. What was seen at different times,
  // up to kSteps * (kSteps - 1) steps apart, has one in common, where `steps` may have none.
  std::vector<LedgerStep> marks;
};

class Ledger {
 public:
  static constexpr size_t kOperations = 256, kSteps = 64, kGroups = 32;

  static int64_t now();  // ns

  // Any thread. The first is for good; at most kGroups.
  int16_t add_group(std::string name, std::vector<int32_t> ranks);
  std::vector<LedgerGroup> groups() const;

  // The step loop's thread. An operation that fails is never ended.
  void begin(const LedgerCall& call) {
    if (tape_ != nullptr) tape_->push_back(call);
    if (call.queued) ++queued_;
    const uint64_t sequence = ++sequence_;
    Words& slot = operations_[sequence % kOperations];
    slot[0].store(0, std::memory_order_relaxed);
    put(slot[1], step_);
    put(slot[2], plan_);
    put(slot[3], call.bytes);
    put(slot[4], call.number);
    put(slot[5], pack(call));
    put(slot[6], static_cast<uint64_t>(now()));
    put(slot[7], 0);
    put(slot[0], sequence);
  }
  void end() { put(operations_[sequence_ % kOperations][7], static_cast<uint64_t>(now())); }

  // For LedgerCall::number.
  uint64_t next_number(int16_t group) { return ++numbers_[static_cast<size_t>(group)]; }

  // What is begun is put on `tape` too, until null is given. A graph that is recorded meanwhile
  // does these operations whenever it is replayed, and play() writes them down with new numbers.
  void record(std::vector<LedgerCall>* tape) { tape_ = tape; }
  void play(const std::vector<LedgerCall>& tape);

  // Several steps may be under way.
  void begin_step(uint64_t step, uint64_t plan);
  void end_step(uint64_t step);

  // Any thread: at most the last `operations`, and all steps and marks that the rings have.
  LedgerView view(size_t operations = kOperations) const;

 private:
  using Word = std::atomic<uint64_t>;
  using Words = std::array<Word, 8>;
  // The first word of a slot is its sequence number, 0 while the others are written. They are
  // stored with release: who has read a new one finds the first one changed.
  static void put(Word& word, uint64_t value) { word.store(value, std::memory_order_release); }
  static uint64_t pack(const LedgerCall& call) {
    return static_cast<uint64_t>(static_cast<uint32_t>(call.peer)) << 32 |
           static_cast<uint64_t>(static_cast<uint16_t>(call.group)) << 16 |
           static_cast<uint64_t>(call.dtype) << 8 | static_cast<uint64_t>(call.op);
  }

  // The writer's own.
  uint64_t sequence_ = 0, step_count_ = 0, mark_count_ = 0, step_ = 0, plan_ = 0, queued_ = 0;
  std::array<uint64_t, kGroups> numbers_{};
  std::vector<LedgerCall>* tape_ = nullptr;
  alignas(64) std::array<Words, kOperations> operations_{};
  std::array<Words, kSteps> steps_{}, marks_{};
  mutable std::mutex mutex_;
  std::vector<LedgerGroup> groups_;
};

}  // namespace trireme
