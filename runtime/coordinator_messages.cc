#include "runtime/coordinator_messages.h"

#include <google/protobuf/unknown_field_set.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "runtime/unicode.h"

namespace trireme {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownFieldSet;

// The path of the first string field that is not UTF-8.
std::optional<std::string> find_bad_string(const UnknownFieldSet& fields, const Descriptor& type) {
  for (int i = 0; i < fields.field_count(); ++i) {
    const auto& field = fields.field(i);
    const FieldDescriptor* known = type.FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED) {
      continue;
    }
    const std::string& bytes = field.length_delimited();
    if (known->type() == FieldDescriptor::TYPE_STRING) {
      if (const auto at = find_invalid_utf8(bytes)) {
        return fmt::format("{} is not UTF-8: byte {} is wrong", known->name(), *at);
      }
    } else if (known->type() == FieldDescriptor::TYPE_MESSAGE) {
      UnknownFieldSet inner;
      if (!inner.ParseFromString(bytes)) continue;
      if (const auto found = find_bad_string(inner, *known->message_type())) {
        return std::string(known->name()) + "." + *found;
      }
    }
  }
  return std::nullopt;
}

void fill(const TokenInfo& info, const Tokenizer* tokenizer, v1::TokenLogprobs& message) {
  const auto one = [&](int32_t token, float logprob, v1::TokenLogprob& out) {
    out.set_token_id(token);
    out.set_logprob(logprob);
    if (tokenizer != nullptr && token >= 0 && token < tokenizer->vocab_size()) {
      out.set_token(std::string(tokenizer->token_bytes(token)));
    }
  };
  one(info.token, info.logprob, *message.mutable_chosen());
  for (const TokenLogprob& top : info.top) one(top.token, top.logprob, *message.add_top());
}

v1::FinishReason to_wire(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return v1::FINISH_REASON_UNSPECIFIED;
    case FinishReason::kStop: return v1::FINISH_REASON_STOP;
    case FinishReason::kLength: return v1::FINISH_REASON_LENGTH;
    case FinishReason::kAborted: return v1::FINISH_REASON_ABORTED;
    case FinishReason::kError: return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_ERROR;
}

template <typename Repeated>
std::vector<int32_t> ids_of(const Repeated& ids) {
  return {ids.begin(), ids.end()};
}

// An absent field leaves the default of SamplingParams, which is the wire's.
void take_sampling(const v1::SamplingOptions& wire, GenerateParams& params) {
  SamplingParams& s = params.sampling;
  if (wire.has_temperature()) s.temperature = wire.temperature();
  if (wire.has_top_k()) s.top_k = wire.top_k();
  if (wire.has_top_p()) s.top_p = wire.top_p();
  if (wire.has_min_p()) s.min_p = wire.min_p();
  if (wire.has_repetition_penalty()) s.repetition_penalty = wire.repetition_penalty();
  if (wire.has_presence_penalty()) s.presence_penalty = wire.presence_penalty();
  if (wire.has_frequency_penalty()) s.frequency_penalty = wire.frequency_penalty();
  s.logit_bias.assign(wire.logit_bias().begin(), wire.logit_bias().end());
  std::sort(s.logit_bias.begin(), s.logit_bias.end());
  s.allowed_tokens = ids_of(wire.allowed_tokens());
  s.banned_tokens = ids_of(wire.banned_tokens());
  params.seed_given = wire.has_seed();
  if (wire.has_seed()) s.seed = wire.seed();
}

void take_logprobs(const v1::LogprobOptions& wire, SamplingParams& sampling) {
  const auto checked = [](const char* field, int32_t value) {
    if (value < 0)
      fail(ErrorCode::kInvalidArgument, "{} is {}: it must be 0 or more", field, value);
    return value;
  };
  if (wire.has_logprobs()) sampling.logprobs = checked("logprobs", wire.logprobs());
  if (wire.has_prompt_logprobs()) {
    sampling.prompt_logprobs = checked("prompt_logprobs", wire.prompt_logprobs());
  }
}

}  // namespace

void parse_message(std::string_view bytes, google::protobuf::Message& message) {
  if (message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
  UnknownFieldSet fields;
  if (fields.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    if (const auto bad = find_bad_string(fields, *message.GetDescriptor())) {
      fail(ErrorCode::kInvalidArgument, "{}", *bad);
    }
  }
  fail(ErrorCode::kInvalidArgument, "the request is not a {}",
       std::string(message.GetDescriptor()->full_name()));
}

GenerateParams to_params(v1::GenerateRequest&& request) {
  GenerateParams params;
  params.request_id = std::move(*request.mutable_request_id());
  if (request.has_text()) params.text = std::move(*request.mutable_text());
  if (request.has_token_ids()) params.token_ids = ids_of(request.token_ids().ids());
  params.prior_token_ids = ids_of(request.prior_token_ids());
  take_sampling(request.sampling(), params);
  const v1::StopOptions& stop = request.stop();
  if (stop.has_max_tokens()) params.sampling.max_tokens = stop.max_tokens();
  if (stop.has_min_tokens()) params.sampling.min_tokens = stop.min_tokens();
  params.stop.assign(stop.stop().begin(), stop.stop().end());
  params.sampling.stop_ids = ids_of(stop.stop_ids());
  params.ignore_eos = stop.ignore_eos();
  params.include_stop = stop.include_stop();
  take_logprobs(request.logprobs(), params.sampling);
  if (request.has_n()) params.n = request.n();
  params.echo = request.echo();
  params.priority = request.priority();
  if (request.has_add_special_tokens()) params.add_special_tokens = request.add_special_tokens();
  if (request.has_skip_special_tokens()) {
    params.skip_special_tokens = request.skip_special_tokens();
  }
  params.cache_salt = std::move(*request.mutable_cache_salt());
  return params;
}

void to_message(const OutputStream& stream, v1::Accepted& accepted) {
  accepted.set_request_id(stream.request_id());
  accepted.set_seed(stream.seed());
  accepted.set_prompt_tokens(stream.prompt_tokens());
}

void to_message(const Delta& delta, const Tokenizer* tokenizer, v1::OutputDelta& message) {
  message.set_index(delta.output);
  message.set_token_index(delta.token_index);
  message.mutable_token_ids()->Assign(delta.token_ids.begin(), delta.token_ids.end());
  message.set_text(delta.text);
  for (const TokenInfo& info : delta.logprobs) fill(info, tokenizer, *message.add_logprobs());
  for (const TokenInfo& info : delta.prompt_logprobs) {
    fill(info, tokenizer, *message.add_prompt_logprobs());
  }
  if (delta.finish == FinishReason::kNone) return;
  message.set_finish_reason(to_wire(delta.finish));
  message.set_stop_text(delta.stop_text);
  if (delta.stop_id >= 0) message.set_stop_id(delta.stop_id);
  message.set_error(delta.error);
  message.mutable_usage()->set_prompt_tokens(delta.prompt_tokens);
  message.mutable_usage()->set_cached_tokens(delta.cached_tokens);
  message.mutable_usage()->set_completion_tokens(delta.completion_tokens);
}

void to_message(const ServerDescription& description, v1::ServerInfo& info) {
  info.set_version(description.version);
  info.set_layout(description.layout);
  info.set_ranks(description.ranks);
  info.set_backend(description.backend);
  info.set_profile(description.profile);
  info.set_max_queue(description.scheduler.max_queue);
  info.set_max_running(description.scheduler.max_running);
  info.set_token_budget(description.scheduler.token_budget);
  info.set_block_size(description.pool.block_size);
  int64_t blocks = description.pool.blocks.empty() ? 0 : description.pool.blocks.front();
  for (const int32_t of_group : description.pool.blocks)
    blocks = std::min<int64_t>(blocks, of_group);
  info.set_kv_token_capacity(blocks * description.pool.block_size);
}

void to_message(const ServerDescription& description, const FrontendConfig& frontend,
                bool has_tokenizer, v1::ModelInfo& info) {
  const ModelConfig& model = description.model;
  info.set_name(model.name);
  info.set_architecture(model.architecture);
  info.set_layers(static_cast<int32_t>(model.layers.size()));
  info.set_hidden(model.hidden);
  info.set_q_heads(model.q_heads);
  info.set_kv_heads(model.kv_heads);
  info.set_head_dim(model.head_dim);
  info.set_vocab(frontend.vocab);
  info.set_max_context(frontend.max_context);
  info.mutable_eos_ids()->Assign(frontend.eos_ids.begin(), frontend.eos_ids.end());
  info.set_has_tokenizer(has_tokenizer);
  info.set_chat_template(description.chat_template);
}

void to_message(const EngineStats& stats, int32_t live_requests, v1::Load& load) {
  const SchedulerStats& scheduler = stats.scheduler;
  load.set_waiting(scheduler.waiting);
  load.set_running(scheduler.running);
  load.set_kv_blocks(scheduler.kv.blocks);
  load.set_kv_blocks_used(scheduler.kv.used);
  load.set_kv_blocks_cached(scheduler.kv.cached);
  load.set_kv_tokens_used(scheduler.kv_tokens_used);
  load.set_kv_tokens_allocated(scheduler.kv_tokens_allocated);
  load.set_steps(scheduler.steps);
  load.set_generated_tokens(stats.generated_tokens);
  load.set_prompt_tokens(stats.prompt_tokens);
  load.set_cached_tokens(scheduler.kv.hit_tokens);
  load.set_preemptions(scheduler.preemptions);
  load.set_requests(live_requests);
}

}  // namespace trireme
