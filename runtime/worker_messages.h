// What passes between rank 0 and the other ranks on `control`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "parallel/communicator.h"
#include "runtime/plan_hash.h"

namespace trireme {

// The last byte of every message from rank 0.
enum class Order : uint8_t {
  kPlan = 1,  // preceded by an encoded StepPlan and rank 0's hash of it (plan_hash.h)
  kSleep,     // wait at the doorbell for the next message
  kEnd,
};

inline constexpr int kOrderTag = 1;
inline constexpr int kResultTag = 2;
// On `data`, from the last stage to the first one's ranks: the tokens of a step's rows that sample.
inline constexpr int kTokensTag = 2;

// RowResult::token of a row for which nothing was left to sample: every token banned, or no logit
// above -inf. (-1 means that the row did not sample.)
inline constexpr int32_t kNothingLeft = -2;
// What then counts as sampled, on every rank, until the sequence is gone.
inline constexpr int32_t kStandIn = 0;

// Rank 0: `message` (may be empty) with its order to every other rank.
inline void send_order(Communicator& control, std::vector<std::byte>& message, Order order) {
  message.push_back(static_cast<std::byte>(order));
  for (int rank = 1; rank < control.size(); ++rank) control.send(message, rank, kOrderTag);
}

// Appends the hash of an encoded plan, and gives it. `last`: of the plan before it.
inline uint64_t seal_plan(std::vector<std::byte>& message, uint64_t last) {
  const uint64_t hash = hash_bytes(message, last);
  message.resize(message.size() + sizeof hash);
  std::memcpy(message.data() + message.size() - sizeof hash, &hash, sizeof hash);
  return hash;
}

// The other way: the hash of what came, and rank 0's. Throws kInternal if there is none.
struct PlanHashes {
  uint64_t own = 0, sent = 0;
};
inline PlanHashes unseal_plan(std::vector<std::byte>& message, uint64_t last) {
  PlanHashes hashes;
  if (message.size() < sizeof hashes.sent) {
    fail(ErrorCode::kInternal, "worker: a plan of {} bytes from rank 0", message.size());
  }
  const size_t bytes = message.size() - sizeof hashes.sent;
  std::memcpy(&hashes.sent, message.data() + bytes, sizeof hashes.sent);
  message.resize(bytes);
  hashes.own = hash_bytes(message, last);
  return hashes;
}

// Receives a message of any size; false if there is none yet, only with Wait::kNever.
inline bool receive(Communicator& control, int from, int tag, Wait wait,
                    std::vector<std::byte>& message) {
  const int64_t bytes = control.probe(from, tag, wait);
  if (bytes < 0) return false;
  message.resize(static_cast<size_t>(bytes));
  control.recv(message, from, tag);
  return true;
}

}  // namespace trireme
