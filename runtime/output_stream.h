// What a reader of a request receives.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "runtime/sequence.h"
#include "runtime/step_plan.h"

namespace trireme {

struct TokenInfo {
  int32_t token = -1;
  float logprob = 0.0f;
  std::vector<TokenLogprob> top;
};

// New tokens of one output since the last delta that this reader took.
struct Delta {
  int32_t output = 0;
  // Of token_ids[0] among the generated tokens. An echoed prompt comes in deltas of its own, which
  // count up from -prompt_tokens.
  int32_t token_index = 0;
  std::vector<int32_t> token_ids;
  std::string text;
  std::vector<TokenInfo> logprobs;         // if asked for: one per generated token id
  std::vector<TokenInfo> prompt_logprobs;  // from the first delta on, if asked for
  FinishReason finish = FinishReason::kNone;
  std::string stop_text;
  int32_t stop_id = -1;
  std::string error;
  // Valid with finish. The times are those at which the output's first and last token (prior ones
  // apart) were known, however late a reader takes them.
  int32_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  std::chrono::steady_clock::time_point first_token, last_token;
};

// A reader of one request's outputs: a cursor over the request's record. One thread at a time.
class OutputStream {
 public:
  virtual ~OutputStream() = default;
  virtual const std::string& request_id() const = 0;
  virtual uint64_t seed() const = 0;
  virtual int32_t prompt_tokens() const = 0;

  // The next delta of any output, coalesced with all that is ready for that output; nullopt if
  // nothing is ready. Every output's last delta has finish set, once. `max_entries` bounds the
  // delta: tokens and log-probabilities, all together, and about kTextPerEntry bytes of generated
  // text for each; the rest comes with the next poll.
  static constexpr size_t kAll = std::numeric_limits<size_t>::max();
  static constexpr size_t kTextPerEntry = 64;
  virtual std::optional<Delta> poll(size_t max_entries = kAll) = 0;
  virtual bool ended() const = 0;  // every output's last delta was taken
  // Blocks until poll() would give something or the stream has ended; false on timeout.
  virtual bool wait(std::chrono::milliseconds timeout) = 0;
  // Calls `ready` once, when poll() has something: on this thread if it has now, else on a
  // frontend thread. It may be called after the stream is destroyed. At most one at a time.
  virtual void arm(std::function<void()> ready) = 0;
  // Calls `given_up` at most once, on any thread, when an ended request that only its slow readers
  // still hold has to make room: who reads on keeps it in memory, and should stop.
  virtual void on_give_up(std::function<void()> given_up) = 0;
};

}  // namespace trireme
