// What a request may ask for: every field against its limit, with a message that names both.
#pragma once

#include <cstddef>

#include "runtime/frontend.h"

namespace trireme {

inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr size_t kMaxStopStringBytes = 1024;
inline constexpr size_t kMaxCacheSaltBytes = 256;
inline constexpr size_t kMaxTokenListSize = 1 << 20;  // token_ids, allowed_tokens, …
inline constexpr size_t kMaxStopIds = 4096;           // looked through for every token
// Of logit_bias, allowed_tokens, banned_tokens and stop_ids, for all outputs of a request together:
// every output has its own, in the queue, in plans and in slots.
inline constexpr int64_t kMaxTokenListBytes = 16 << 20;

// Throws kInvalidArgument. `max_token_bytes`: the longest token's, to refuse a text that must be
// over the context before it is tokenized (0: unknown).
void check_request(const GenerateParams& params, const FrontendConfig& config,
                   const Tokenizer* tokenizer, size_t max_token_bytes);

// Sorts allowed_tokens, banned_tokens and stop_ids and drops what occurs twice; then throws
// kInvalidArgument if the lists of all outputs take more than kMaxTokenListBytes.
void tidy_token_lists(GenerateParams& params);

// As check_request(), for what is known only once the prompt is tokenized. Returns max_tokens as
// the context clips it.
int32_t check_lengths(const GenerateParams& params, size_t prompt_tokens,
                      const FrontendConfig& config);

void check_token_ids(const char* field, const std::vector<int32_t>& ids, int64_t vocab);

}  // namespace trireme
