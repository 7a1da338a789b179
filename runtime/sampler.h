// Chooses tokens from logits whose vocabulary is split over the tensor ranks of the last stage.
// Every rank calls with its own part of the same rows and comes to the same result.
//
// Order per row: log-probabilities are of the raw logits (log_softmax over the whole vocabulary);
// then allowed/banned tokens, logit bias, repetition/presence/frequency penalties, the min_tokens
// ban of stop ids; temperature; top_k, top_p (of what top_k kept), min_p; and the Gumbel-max draw.
// Greedy takes the largest logit, ties to the lowest id.
//
// What is kept is always a prefix of the tokens sorted by (logit descending, id ascending). Each
// rank sends its best few; where they do not prove the prefix, four times as many are sent, up to
// the whole vocabulary, or, for top_p alone, the threshold is searched by the masses of buckets of
// logits; queue() has the device search so for top_k and top_p. Sums are in fixed point: equal bits
// for every split.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/matrix_view.h"
#include "kernels/logit_rows.h"
#include "parallel/communicator.h"
#include "parallel/layout.h"
#include "runtime/sampler_row.h"
#include "runtime/sampling_params.h"
#include "runtime/step_plan.h"

namespace trireme {

// What is wanted of one row of logits.
struct SampleRow {
  // Null: nothing is sampled, only `target` is scored.
  const SamplingParams* params = nullptr;
  const TokenCounts* counts = nullptr;  // of this rank's part; may be null without penalties
  // queue() alone: >= 0 where `counts` lacks the token before, which this slot's choice made.
  int32_t newest_slot = -1;
  uint32_t output_index = 0;
  int32_t position = 0;  // index of the generated token: 0 for the first
  uint32_t draw = 0;     // several draws for one token (speculation) differ in this
  int32_t target = -1;   // scoring: the token whose log-probability is wanted
  int32_t top = 0;       // scoring: how many of the best besides
};

struct Sampled {
  // -1: nothing is left to choose from (every token banned, or no logit above -inf).
  int32_t token = -1;
  float logprob = 0.0f;           // where log-probabilities are wanted
  std::vector<TokenLogprob> top;  // best first; tokens at -inf are left out
};

class Sampler {
 public:
  // Collective over `tp`, which must outlive the sampler. `vocab` is this rank's part of
  // `vocab_size` tokens. `rows`: how the logits are looked at (Backend::make_logit_rows); null:
  // in host memory.
  Sampler(Communicator& tp, Part vocab, int64_t vocab_size,
          std::unique_ptr<LogitRows> rows = nullptr);
  ~Sampler();

  // Collective. logits [rows, vocab.count] f32, where `rows` of the constructor looks at them, are
  // modified. Rows are independent of each other.
  // NaN logits count as -inf, +inf as the largest finite number.
  void sample(MatrixView logits, std::span<const SampleRow> rows, std::vector<Sampled>& out);

  // Whether queue() takes these rows: the logits are on a device, and tokens are all that is wanted
  // (no log-probabilities). The same on all ranks.
  bool can_queue(std::span<const SampleRow> rows) const;
  size_t most_queued() const;  // rows that queue() takes at most; 0: none
  // As sample(), but only queued: row i's token becomes the newest of slots[i] for the next step on
  // the device (StepInputs::token_slots). At most LogitChooser::kInFlight are not taken at a time.
  uint64_t queue(MatrixView logits, std::span<const SampleRow> rows,
                 std::span<const int32_t> slots);
  bool done(uint64_t number) const;
  // Once it is done: the tokens, -1 as in Sampled.
  void take(uint64_t number, std::vector<int32_t>& tokens);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme
