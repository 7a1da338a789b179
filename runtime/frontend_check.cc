#include "runtime/frontend_check.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

constexpr ErrorCode kBad = ErrorCode::kInvalidArgument;

void check_float(const char* field, float value, float low, float high) {
  if (std::isfinite(value) && value >= low && value <= high) return;
  fail(kBad, "{} is {}: it must be from {} to {}", field, value, low, high);
}

template <typename Int>
void check_int(const char* field, Int value, Int low, Int high) {
  if (value >= low && value <= high) return;
  fail(kBad, "{} is {}: it must be from {} to {}", field, value, low, high);
}

void check_utf8(const char* field, const std::string& text) {
  if (const auto at = find_invalid_utf8(text)) {
    fail(kBad, "{} is not UTF-8: byte {} is wrong", field, *at);
  }
}

void check_size(const char* field, const char* unit, size_t size, size_t limit) {
  if (size > limit) fail(kBad, "{} has {} {}: at most {} are allowed", field, size, unit, limit);
}

void check_sampling(const SamplingParams& s, const FrontendConfig& config) {
  check_float("temperature", s.temperature, 0.0f, 100.0f);
  if (s.temperature != 0.0f && s.temperature < 1e-5f) {
    fail(kBad, "temperature is {}: it must be 0 (greedy) or from 0.00001 to 100", s.temperature);
  }
  check_int("top_k", s.top_k, 0, INT32_MAX);
  check_float("top_p", s.top_p, 0.0f, 1.0f);
  if (s.top_p == 0.0f) fail(kBad, "top_p is 0: it must be above 0, up to 1");
  check_float("min_p", s.min_p, 0.0f, 1.0f);
  check_float("repetition_penalty", s.repetition_penalty, 0.0f, 100.0f);
  if (s.repetition_penalty < 1e-3f) {
    fail(kBad, "repetition_penalty is {}: it must be from 0.001 to 100", s.repetition_penalty);
  }
  check_float("presence_penalty", s.presence_penalty, -2.0f, 2.0f);
  check_float("frequency_penalty", s.frequency_penalty, -2.0f, 2.0f);
  check_size("logit_bias", "entries", s.logit_bias.size(), kMaxTokenListSize);
  for (const auto& [token, bias] : s.logit_bias) {
    check_int<int64_t>("logit_bias: token id", token, 0, config.vocab - 1);
    check_float("logit_bias", bias, -10000.0f, 10000.0f);
  }
  check_token_ids("allowed_tokens", s.allowed_tokens, config.vocab);
  check_token_ids("banned_tokens", s.banned_tokens, config.vocab);
  check_size("stop_ids", "ids", s.stop_ids.size(), kMaxStopIds);
  check_token_ids("stop_ids", s.stop_ids, config.vocab);
  const std::unordered_set<int32_t> banned(s.banned_tokens.begin(), s.banned_tokens.end());
  const auto is_banned = [&](int32_t token) { return banned.contains(token); };
  if (static_cast<int64_t>(banned.size()) >= config.vocab ||
      (!s.allowed_tokens.empty() &&
       std::all_of(s.allowed_tokens.begin(), s.allowed_tokens.end(), is_banned))) {
    fail(kBad, "banned_tokens: no token is left that could be generated");
  }
  if (s.max_tokens < 0) fail(kBad, "max_tokens is {}: it must not be negative", s.max_tokens);
  check_int("min_tokens", s.min_tokens, 0, s.max_tokens);
  const auto limit = static_cast<int32_t>(
      config.max_logprobs < 0 ? config.vocab
                              : std::min<int64_t>(config.max_logprobs, config.vocab));
  check_int("logprobs", s.logprobs, -1, limit);
  check_int("prompt_logprobs", s.prompt_logprobs, -1, limit);
}

void check_stop_strings(const GenerateParams& params, const FrontendConfig& config,
                        const Tokenizer* tokenizer) {
  if (params.stop.empty()) return;
  if (tokenizer == nullptr) {
    fail(kBad, "stop: this model has no tokenizer, so only stop_ids can be given");
  }
  check_size("stop", "strings", params.stop.size(), config.max_stop_strings);
  for (const std::string& stop : params.stop) {
    if (stop.empty()) fail(kBad, "stop: a stop string is empty");
    check_size("stop: a stop string", "bytes", stop.size(), kMaxStopStringBytes);
    check_utf8("stop", stop);
  }
}

void check_prompt(const GenerateParams& params, const FrontendConfig& config,
                  const Tokenizer* tokenizer, size_t max_token_bytes) {
  if (!params.text.has_value()) {
    if (params.token_ids.empty()) fail(kBad, "prompt: it is empty, give text or token_ids");
    check_token_ids("token_ids", params.token_ids, config.vocab);
    return;
  }
  if (!params.token_ids.empty()) fail(kBad, "prompt: give text or token_ids, not both");
  if (tokenizer == nullptr) {
    fail(kBad, "text: this model has no tokenizer, give token_ids instead");
  }
  check_utf8("text", *params.text);
  if (max_token_bytes > 0 &&
      params.text->size() / max_token_bytes > static_cast<size_t>(config.max_context)) {
    fail(kBad,
         "prompt: {} bytes of text are at least {} tokens, over the context limit of {} tokens",
         params.text->size(), params.text->size() / max_token_bytes, config.max_context);
  }
}

}  // namespace

void check_token_ids(const char* field, const std::vector<int32_t>& ids, int64_t vocab) {
  check_size(field, "ids", ids.size(), kMaxTokenListSize);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab) continue;
    fail(kBad, "{}[{}] is {}: token ids are from 0 to {}", field, i, ids[i], vocab - 1);
  }
}

void check_request(const GenerateParams& params, const FrontendConfig& config,
                   const Tokenizer* tokenizer, size_t max_token_bytes) {
  check_size("request_id", "bytes", params.request_id.size(), kMaxRequestIdBytes);
  check_utf8("request_id", params.request_id);
  check_size("cache_salt", "bytes", params.cache_salt.size(), kMaxCacheSaltBytes);
  check_prompt(params, config, tokenizer, max_token_bytes);
  check_int("n", params.n, 1, config.max_outputs);
  check_sampling(params.sampling, config);
  check_stop_strings(params, config, tokenizer);
  check_token_ids("prior_token_ids", params.prior_token_ids, config.vocab);
  if (params.prior_token_ids.empty()) return;
  if (params.n != 1) fail(kBad, "n is {}: with prior_token_ids it must be 1", params.n);
  if (!params.seed_given) fail(kBad, "seed: it must be set with prior_token_ids");
  const size_t prior = params.prior_token_ids.size();
  if (prior > static_cast<size_t>(params.sampling.max_tokens)) {
    fail(kBad, "prior_token_ids has {} ids, over max_tokens, which is {}", prior,
         params.sampling.max_tokens);
  }
}

void tidy_token_lists(GenerateParams& params) {
  SamplingParams& s = params.sampling;
  for (std::vector<int32_t>* ids : {&s.allowed_tokens, &s.banned_tokens, &s.stop_ids}) {
    std::sort(ids->begin(), ids->end());
    ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
    ids->shrink_to_fit();
  }
  const int64_t bytes = s.list_bytes() * params.n;
  if (bytes <= kMaxTokenListBytes) return;
  const std::pair<size_t, const char*> lists[] = {
      {s.allowed_tokens.size(), "allowed_tokens"},
      {s.banned_tokens.size(), "banned_tokens"},
      {s.logit_bias.size(), "logit_bias"},
  };
  const auto longest = *std::max_element(std::begin(lists), std::end(lists));
  fail(kBad,
       "{} has {} entries for each of n = {} outputs: token lists of {} bytes in all, at most {} "
       "are allowed",
       longest.second, longest.first, params.n, bytes, kMaxTokenListBytes);
}

int32_t check_lengths(const GenerateParams& params, size_t prompt_tokens,
                      const FrontendConfig& config) {
  if (prompt_tokens == 0) fail(kBad, "prompt: it has no tokens");
  const auto limit = static_cast<size_t>(config.max_context);
  const size_t prior = params.prior_token_ids.size();
  if (prompt_tokens + prior > limit) {
    fail(kBad, "prompt has {} tokens{}: the context limit is {} tokens", prompt_tokens,
         prior == 0 ? "" : fmt::format(" and prior_token_ids {}", prior), limit);
  }
  if (prompt_tokens == limit && params.sampling.max_tokens > 0) {
    fail(kBad,
         "prompt has {} tokens: the context limit is {} tokens, which leaves none to generate",
         prompt_tokens, limit);
  }
  const auto room = static_cast<int32_t>(limit - prompt_tokens);
  return std::min(params.sampling.max_tokens, room);
}

}  // namespace trireme
