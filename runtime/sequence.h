// One output of one request while it lives: its tokens are the truth, KV is only a cache of them.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/prefix_hash.h"
#include "runtime/sampling_params.h"

namespace trireme {

using SequenceId = uint64_t;

enum class FinishReason : uint8_t { kNone, kStop, kLength, kAborted, kError };

struct Sequence {
  SequenceId id = 0;
  uint64_t group = 0;  // the request: its n outputs share a prompt; 0: no siblings
  uint32_t output_index = 0;
  int32_t priority = 0;      // higher runs first
  uint64_t prefix_salt = 0;  // prefix hashes of different salts never meet (tenant, adapter, …)
  std::vector<int32_t> tokens;  // prompt, then generated (a resumed request brings some)
  int32_t prompt_tokens = 0;
  SamplingParams sampling;
  std::vector<PrefixHash> prefix_hashes;  // of its full blocks; made by Scheduler::prepare()

  int32_t size() const { return static_cast<int32_t>(tokens.size()); }
  int32_t generated() const { return size() - prompt_tokens; }
};

// Throws kInvalidArgument naming the field: no prompt, prompt_tokens beyond the tokens, negative
// limits, or more than `max_context` tokens.
void validate(const Sequence& sequence, int32_t max_context);

// Why the sequence ends after its newest generated token, or kNone. A stop id counts only where the
// sampler could choose it: after min_tokens others. Without generated tokens: kLength if none may
// be generated (max_tokens 0, or a prompt that fills the context).
FinishReason finish_reason(const Sequence& sequence, int32_t max_context);

// The most tokens that the sequence can come to have, and of how many of them KV is needed (the
// last generated token ends the sequence before it is computed).
int32_t final_size(const Sequence& sequence, int32_t max_context);
int32_t final_kv_tokens(const Sequence& sequence, int32_t max_context);

}  // namespace trireme
