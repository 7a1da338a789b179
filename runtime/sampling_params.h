// How the next token of a sequence is chosen. Plain data: on the wire, in plans and in slots.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace trireme {

struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy
  int32_t top_k = 0;                // 0: off
  float top_p = 1.0f;               // in (0, 1]
  float min_p = 0.0f;               // in [0, 1]; keeps tokens with p >= min_p * p_max
  float repetition_penalty = 1.0f;  // > 0; over prompt and generated tokens (CTRL, Keskar 2019)
  float presence_penalty = 0.0f;    // in [-2, 2]; over generated tokens
  float frequency_penalty = 0.0f;   // in [-2, 2]; over generated tokens
  std::vector<std::pair<int32_t, float>> logit_bias;  // added to the raw logits
  std::vector<int32_t> allowed_tokens;                // empty: all
  std::vector<int32_t> banned_tokens;
  uint64_t seed = 0;              // always set by the time a sequence exists
  int32_t max_tokens = 16;        // generated tokens, prior ones of a resumed request included
  int32_t min_tokens = 0;         // stop ids cannot be sampled before
  std::vector<int32_t> stop_ids;  // end the output; the model's EOS ids are added here by the
                                  // frontend unless ignore_eos
  int32_t logprobs = -1;          // -1: none; k >= 0: the token's and the k best, of the raw logits
  int32_t prompt_logprobs = -1;   // the same for prompt positions from the second on

  bool greedy() const { return !(temperature > 0.0f); }
  // What the lists take in a plan: they are what makes one large.
  int64_t list_bytes() const {
    const size_t ids = allowed_tokens.size() + banned_tokens.size() + stop_ids.size();
    return static_cast<int64_t>(ids * sizeof(int32_t) +
                                logit_bias.size() * sizeof(logit_bias.front()));
  }
  bool needs_counts() const {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
  }
};

}  // namespace trireme
