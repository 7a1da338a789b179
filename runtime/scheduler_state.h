// What the scheduler remembers between steps. Private to scheduler*.cc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <unordered_map>
#include <vector>

#include "runtime/scheduler.h"

namespace trireme {

// One KV group's block table of one sequence. Entries before `live` have left the window: they are
// KvGroupBlocks::kNone. The tables of all groups of a sequence have the same length.
struct BlockTable {
  std::vector<int32_t> blocks;
  int32_t live = 0;
};

enum class Phase : uint8_t {
  kParked,   // waits for a sibling to compute the prompt that they share
  kWaiting,  // in the queue
  kPrefill,  // has a slot; known tokens are still to be planned
  kDecode,   // has a slot; at most the newest token, known or in flight, is still to be planned
  kEnding,   // has a slot; nothing is left to plan
};

// A sequence and all that the scheduler knows of it. The first cache line is all that planning a
// decode row reads, and applying its result writes the second: with thousands of rows a step costs
// what it touches.
struct alignas(64) Entry {
  Entry(Sequence from, PrefixChain of_sequence, int32_t max_context);

  SequenceId id = 0;
  int32_t size = 0;       // known tokens
  int32_t computed = 0;   // positions whose KV exists or is in flight; size + 1 with a row ahead
  int32_t capacity = 0;   // positions that the block tables cover
  int32_t newest = 0;     // the last token
  int16_t in_flight = 0;  // plans with a row of this sequence
  uint16_t last_step = 0;  // the newest of these, modulo 65536
  SlotId slot = -1;
  int32_t max_size = 0;                             // the sequence ends at this size
  int32_t stops_above = 0;                          // stop ids count in sizes above this
  std::array<int32_t, 4> stops = {-1, -1, -1, -1};  // the first stop ids
  Phase phase = Phase::kWaiting;
  bool many_stops = false;  // sampling.stop_ids has more than `stops`
  bool has_siblings = false;
  bool wants_prompt_logprobs = false;
  bool aborted = false;    // ends as soon as it is not in flight
  bool admitted = false;   // has had a slot before: `cached` is set, it no longer counts as queued
  bool announced = false;  // first_admission was reported
  bool over = false;       // had its last event; keeps slot and blocks while a ghost is in flight

  std::array<int32_t, 15> tail;  // the last tokens, not in sequence.tokens yet: see tokens()
  int32_t tail_size = 0;

  Sequence sequence;
  int32_t cached = 0;       // positions taken from the prefix cache at first admission
  int32_t reported_to = 0;  // prompt log-probabilities of earlier positions were delivered
  uint64_t arrival = 0;
  PrefixChain chain;
  std::vector<BlockTable> tables;  // per KV group
  // Per KV group, while it waits: no admission with fewer available blocks. What its look-up holds
  // is not counted.
  std::vector<int32_t> retry_at;
  bool hurried = false;  // its look-up was given up before: the next one is made in one go

  bool running() const { return slot >= 0; }
  // Whether some of its known tokens are in no plan yet.
  bool ready() const { return !aborted && computed < size; }
  // Whether it waits for the token of its row in flight and, stop ids apart, will go on after it.
  // `step` plans it, and no earlier one than `shares` steps after that row's: every share of the
  // work has its turn.
  bool may_go_ahead(uint64_t step, int32_t shares) const {
    return phase == Phase::kDecode && in_flight > 0 && computed == size && !aborted &&
           size + 1 < max_size && static_cast<uint16_t>(step - last_step) >= shares;
  }
  void append(int32_t token) {
    tail[tail_size++] = newest = token;
    ++size;
    if (tail_size == static_cast<int32_t>(tail.size())) tokens();
  }
  const std::vector<int32_t>& tokens();  // all of them; sequence.tokens is complete from here on
  // The same as finish_reason(sequence, max_context), from the first cache line.
  FinishReason finish() const;
};

// The tokens that a sequence may have before vectors of its length grow: some that it will
// generate, so that no decode step copies a long context.
int32_t most_soon(const Sequence& sequence, int32_t max_context);

// Memory of entries, side by side: scattered over the heap each would cost a page walk a step.
class EntrySlab {
 public:
  struct Delete {
    EntrySlab* slab = nullptr;
    void operator()(Entry* entry) const {
      entry->~Entry();
      slab->free_.push_back(reinterpret_cast<Room*>(entry));
    }
  };
  using Pointer = std::unique_ptr<Entry, Delete>;

  Pointer make(Sequence sequence, PrefixChain chain, int32_t max_context);

 private:
  struct alignas(Entry) Room {
    std::byte bytes[sizeof(Entry)];
  };
  static constexpr size_t kChunk = 64;  // entries

  std::vector<std::unique_ptr<Room[]>> chunks_;
  std::vector<Room*> free_;
};

// The one order of the scheduler: who runs first, who gets blocks first, who is preempted last.
// It is total and never changes for a sequence, so the first one always gets on: no livelock.
struct RanksBefore {
  bool operator()(const Entry* a, const Entry* b) const {
    if (a->sequence.priority != b->sequence.priority) {
      return a->sequence.priority > b->sequence.priority;
    }
    return a->arrival < b->arrival;
  }
};

struct FlightRow {
  Entry* entry = nullptr;
  SlotId slot = 0;
  int32_t end = 0;  // the position after the row
  bool sample = false;
  bool prompt_logprobs = false;
  bool last = false;  // the sequence ends with this row, which samples nothing

  bool has_result() const { return sample || prompt_logprobs; }
};

struct Flight {
  uint64_t step = 0;
  int64_t prefill_tokens = 0;
  int32_t decode_rows = 0;
  std::vector<FlightRow> rows;  // decode rows first
};

// Blocks of a sequence that is gone. They are released a few thousand a step: many long sequences
// may end at once.
struct EndedTable {
  size_t group = 0;
  std::vector<int32_t> blocks;
  int32_t live = 0;
};

// The outputs of a request whose shared prompt is not computed yet.
struct Siblings {
  Entry* leader = nullptr;
  std::vector<Entry*> parked;
};

class SchedulerState {
 public:
  SchedulerState(const SchedulerConfig& config, const KvPoolConfig& pool_config);

  // Ends of a sequence's time in a slot.
  void release_blocks(Entry& entry);  // all of them, the last ones first
  void leave_slot(Entry& entry);
  void preempt(Entry& entry);  // back to the queue; it stays in `running` until compact()
  // Gone; stays in `running` and `retired` until compact(), and as long as a row is in flight.
  void retire(Entry& entry);
  void free_room(Entry& entry);  // of a retired one: slot and blocks
  void compact();

  // Makes the blocks findable that `entry` fills with known tokens, the one of position `from` on.
  void publish_filled(Entry& entry, int32_t from);

  // Releases up to `most` blocks of ended sequences; false if there are none.
  bool release_ended(int64_t most);
  void release_ended();  // as many as a step may; all where no sequence is left

  // Gives up the look-up at hand; false if there is none.
  bool drop_lookup();

  void enqueue(Entry& entry);
  void dequeue(Entry& entry);
  void park_or_enqueue(Entry& entry);
  // The shared prompt is computed (or never will be): the siblings need not wait any longer.
  void release_siblings(Entry& leader);
  void leave_siblings(Entry& entry);  // `entry` is going away

  // Whether siblings, hits and hashes make sense for this sequence at all.
  bool may_hit(const Entry& entry) const;

  SchedulerConfig config;
  KvCachePool pool;
  int32_t slots = 0;
  std::vector<SlotId> free_slots;

  EntrySlab slab;  // outlives the entries
  std::unordered_map<SequenceId, EntrySlab::Pointer> entries;
  std::set<Entry*, RanksBefore> waiting;
  std::vector<Entry*> running;  // in rank order; those without a slot are removed by compact()
  std::unordered_map<uint64_t, Siblings> siblings;
  std::vector<EntrySlab::Pointer> retired;
  std::vector<EndedTable> ended;  // the last one is released first
  // The look-up that was not finished in its step, or found too few blocks for the rest: of the
  // first in the queue. Running sequences that need its blocks make it begin again.
  Entry* looking = nullptr;
  PrefixLookup lookup;
  std::deque<Flight> flights;
  std::vector<std::vector<FlightRow>> spare_rows;  // emptied, for reuse
  std::vector<SequenceEvent> pending_events;

  int32_t queued = 0;  // sequences that never had a slot
  int32_t running_count = 0;
  int64_t waiting_tokens = 0;  // of `waiting`
  int64_t kv_tokens_used = 0;  // as in SchedulerStats, kept up to date with every change
  int64_t kv_tokens_allocated = 0;
  uint64_t arrivals = 0;
  uint64_t epoch = 1;
  uint64_t steps = 0;
  uint64_t preemptions = 0;
  uint64_t rows_ahead = 0;
  uint64_t ghosts = 0;
  uint64_t lookups = 0;
  uint64_t lookups_dropped = 0;
  bool stalled = false;  // next() found nothing, and nothing has changed since
};

}  // namespace trireme
