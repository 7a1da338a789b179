// What one step computes, and what came of it. Plain data that travels from rank 0 to every rank.
//
// Workers mirror each running sequence in a slot: block tables, sampling parameters, token counts.
// A plan is a delta over slots: it names the tokens to compute and the blocks newly taken, so its
// size follows the work of the step and not the lengths of the contexts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/sampling_params.h"

namespace trireme {

using SlotId = int32_t;

// A slot is (re)taken by a sequence: whatever the slot held before is forgotten.
struct SlotInit {
  SlotId slot = 0;
  uint32_t output_index = 0;  // which of a request's n outputs: part of the RNG key
  int32_t prompt_tokens = 0;  // length of the prompt; later positions are generated
  SamplingParams sampling;
  // Blocks already filled (prefix hits), per KV group, from position 0; a windowed group may hold
  // kNoBlock where its window has passed.
  std::vector<std::vector<int32_t>> blocks;
  // All tokens known so far (prompt, then generated), only if sampling.needs_counts().
  std::vector<int32_t> history;
};

inline constexpr int32_t kNoBlock = -1;

// In StepPlan::tokens, as the only token of its row: what the slot's last row sampled. Such a step
// is planned before that token has reached rank 0.
inline constexpr int32_t kSampled = -1;

// Consecutive tokens of one slot: a prefill chunk, a decode row, later a verify row.
struct PlanRow {
  SlotId slot = 0;
  int32_t position = 0;  // of the first token
  int32_t count = 0;     // tokens, at StepPlan::tokens[token_begin…]
  int32_t token_begin = 0;
  int32_t block_begin = 0;  // StepPlan::blocks[block_begin…]: blocks appended to the slot's tables,
  int32_t block_count = 0;  //   `block_count` for each KV group, group after group
  bool sample = false;      // the last token's logits choose the next token
  // Log-probabilities of the prompt are wanted: the targets of this row's tokens are the tokens
  // after them, the last one's being next_token (-1: unknown, nothing to report for it).
  bool prompt_logprobs = false;
  int32_t next_token = -1;
};

struct StepPlan {
  uint64_t epoch = 0;  // counts worlds; a new epoch begins with empty slots
  uint64_t step = 0;
  std::vector<SlotInit> admitted;
  std::vector<PlanRow> rows;  // decode rows first
  std::vector<int32_t> tokens;
  std::vector<int32_t> blocks;

  void clear();
};

struct TokenLogprob {
  int32_t token = -1;
  float logprob = 0.0f;
};

// The outcome of one row that samples or reports prompt log-probabilities, in row order.
struct RowResult {
  SlotId slot = 0;
  int32_t token = -1;  // sampled; -1 if the row did not sample
  float logprob = 0.0f;
  std::vector<TokenLogprob> top;  // best first
  // Per token of the row whose target is known: the target's log-probability and the best ones.
  std::vector<TokenLogprob> prompt;
  std::vector<std::vector<TokenLogprob>> prompt_top;
};

struct StepResult {
  uint64_t step = 0;
  std::vector<RowResult> rows;
};

// Flat byte encodings for MPI. decode throws kInternal on a malformed message.
void encode(const StepPlan& plan, std::vector<std::byte>& out);
void decode(std::span<const std::byte> bytes, StepPlan& plan);
void encode(const StepResult& result, std::vector<std::byte>& out);
void decode(std::span<const std::byte> bytes, StepResult& result);

}  // namespace trireme
