// What a request may ask for: every field against its limit, with a message that names both.
#pragma once

#include <cstddef>

#include "runtime/frontend.h"

namespace trireme {

inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr size_t kMaxStopStringBytes = 1024;
inline constexpr size_t kMaxCacheSaltBytes = 256;
inline constexpr size_t kMaxTokenListSize = 1 << 20;  // logit_bias, allowed_tokens, …

// Throws kInvalidArgument. `max_token_bytes`: the longest token's, to refuse a text that must be
// over the context before it is tokenized (0: unknown).
void check_request(const GenerateParams& params, const FrontendConfig& config,
                   const Tokenizer* tokenizer, size_t max_token_bytes);

// The same for what is known only once the prompt is tokenized. Returns max_tokens as the context
// clips it.
int32_t check_lengths(const GenerateParams& params, size_t prompt_tokens,
                      const FrontendConfig& config);

void check_token_ids(const char* field, const std::vector<int32_t>& ids, int64_t vocab);

}  // namespace trireme
