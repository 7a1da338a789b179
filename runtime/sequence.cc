#include "runtime/sequence.h"

#include <algorithm>

#include "base/error.h"

namespace trireme {

void validate(const Sequence& sequence, int32_t max_context) {
  const size_t size = sequence.tokens.size();
  if (size > static_cast<size_t>(max_context)) {
    fail(ErrorCode::kInvalidArgument, "prompt: {} tokens, the context holds {}", size, max_context);
  }
  if (size == 0) fail(ErrorCode::kInvalidArgument, "prompt: no tokens");
  if (sequence.prompt_tokens < 1 || sequence.prompt_tokens > sequence.size()) {
    fail(ErrorCode::kInvalidArgument, "prompt_tokens: {} of {} tokens", sequence.prompt_tokens,
         size);
  }
  if (sequence.sampling.max_tokens < 0) {
    fail(ErrorCode::kInvalidArgument, "max_tokens: {}: at least 0", sequence.sampling.max_tokens);
  }
  if (sequence.sampling.min_tokens < 0) {
    fail(ErrorCode::kInvalidArgument, "min_tokens: {}: at least 0", sequence.sampling.min_tokens);
  }
}

FinishReason finish_reason(const Sequence& sequence, int32_t max_context) {
  const SamplingParams& sampling = sequence.sampling;
  const int32_t generated = sequence.generated();
  if (generated > 0 && generated > sampling.min_tokens &&
      std::find(sampling.stop_ids.begin(), sampling.stop_ids.end(), sequence.tokens.back()) !=
          sampling.stop_ids.end()) {
    return FinishReason::kStop;
  }
  const bool full = generated >= sampling.max_tokens || sequence.size() >= max_context;
  return full ? FinishReason::kLength : FinishReason::kNone;
}

int32_t final_size(const Sequence& sequence, int32_t max_context) {
  const int64_t wanted = int64_t{sequence.prompt_tokens} + sequence.sampling.max_tokens;
  return std::max(sequence.size(), static_cast<int32_t>(std::min<int64_t>(wanted, max_context)));
}

int32_t final_kv_tokens(const Sequence& sequence, int32_t max_context) {
  return std::max(sequence.size(), final_size(sequence, max_context) - 1);
}

}  // namespace trireme
