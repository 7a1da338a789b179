#include "runtime/frontend.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <random>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "runtime/frontend_check.h"
#include "runtime/record_store.h"
#include "runtime/request_record.h"
#include "runtime/work_thread.h"

namespace trireme {
namespace {

// A sequence id is its request's number and the output's.
constexpr int kOutputBits = 16;
SequenceId sequence_id(uint64_t group, int32_t output) {
  return group << kOutputBits | static_cast<uint64_t>(output);
}
uint64_t group_of(SequenceId id) { return id >> kOutputBits; }
int32_t output_of(SequenceId id) {
  return static_cast<int32_t>(id & ((uint64_t{1} << kOutputBits) - 1));
}

uint64_t random_u64() {
  thread_local std::mt19937_64 random{[] {
    std::random_device device;
    return static_cast<uint64_t>(device()) << 32 | device();
  }()};
  return random();
}

// One detokenizing thread and the requests that are its own.
struct Shard {
  struct Entry {
    std::shared_ptr<RequestRecord> record;
    int32_t open = 0;  // sequences whose last event has not come
  };
  std::mutex mutex;
  std::unordered_map<uint64_t, Entry> requests;
  WorkThread thread;  // last: it ends first
};

}  // namespace

struct Frontend::State {
  State(EngineApi& engine, const Tokenizer* tokenizer, FrontendConfig config);

  std::shared_ptr<RequestRecord> make_record(const GenerateParams& params,
                                             const std::vector<int32_t>& prompt,
                                             int32_t max_tokens);
  std::vector<Sequence> make_sequences(const GenerateParams& params, const RecordConfig& record,
                                       std::vector<int32_t> prompt) const;
  void submit(const std::shared_ptr<RequestRecord>& record, std::vector<Sequence> sequences);
  void forget(const RequestRecord& record);
  void dispatch(std::vector<EngineEvent>&& events);                  // the engine's thread
  void apply(Shard& shard, const std::vector<EngineEvent>& events);  // the shard's thread
  bool end(const std::shared_ptr<RequestRecord>& record, FinishReason finish,
           const std::string& error);
  std::string decode(std::vector<int32_t> ids, bool skip_special) const;
  Shard& shard_of(uint64_t group) { return *shards[group % shards.size()]; }

  EngineApi& engine;
  const Tokenizer* const tokenizer;
  const FrontendConfig config;
  const size_t max_token_bytes;
  // Salts of clients are hashed under a key of this process, so that no one can aim at another's.
  const std::string salt_key = std::to_string(random_u64());
  std::atomic<uint64_t> next_group{1};
  std::atomic<bool> accepting{true};
  std::atomic<int64_t> intake_bytes{0};
  std::atomic<uint64_t> next_intake{0};
  RecordStore records;
  std::vector<std::unique_ptr<Shard>> shards;
  std::vector<std::unique_ptr<WorkThread>> intake;
};

Frontend::State::State(EngineApi& engine, const Tokenizer* tokenizer, FrontendConfig c)
    : engine(engine),
      tokenizer(tokenizer),
      config(std::move(c)),
      max_token_bytes(tokenizer == nullptr ? 0 : tokenizer->max_bytes_per_token()),
      records(config.keep, config.max_ended_bytes) {
  if (config.threads < 1 || config.max_outputs < 1 || config.max_outputs >= 1 << kOutputBits ||
      config.vocab < 1 || config.max_context < 1) {
    fail(ErrorCode::kInternal, "frontend: threads {}, max_outputs {}, vocab {}, max_context {}",
         config.threads, config.max_outputs, config.vocab, config.max_context);
  }
  for (int i = 0; i < config.threads; ++i) {
    shards.push_back(std::make_unique<Shard>());
    intake.push_back(std::make_unique<WorkThread>());
  }
}

std::string Frontend::State::decode(std::vector<int32_t> ids, bool skip_special) const {
  // A model's vocabulary may be padded beyond its tokenizer's.
  std::erase_if(ids, [this](int32_t id) { return id >= tokenizer->vocab_size(); });
  return tokenizer->decode(ids, skip_special);
}

std::shared_ptr<RequestRecord> Frontend::State::make_record(const GenerateParams& params,
                                                            const std::vector<int32_t>& prompt,
                                                            int32_t max_tokens) {
  RecordConfig record;
  record.group = next_group.fetch_add(1, std::memory_order_relaxed);
  record.request_id = params.request_id.empty()
                          ? fmt::format("{:016x}{:016x}", random_u64(), random_u64())
                          : params.request_id;
  // 53 bits: a JSON reader that keeps numbers as doubles must be able to send it back.
  record.seed = params.seed_given ? params.sampling.seed : random_u64() >> 11;
  record.outputs = params.n;
  record.prompt_tokens = static_cast<int32_t>(prompt.size());
  record.echo = params.echo;
  if (params.echo) {
    record.echo_ids = prompt;
    if (tokenizer != nullptr) {
      record.echo_text = params.text ? *params.text : decode(prompt, params.skip_special_tokens);
    }
  }
  record.prior = params.prior_token_ids;
  record.max_tokens = max_tokens;
  record.min_tokens = std::min(params.sampling.min_tokens, max_tokens);
  record.stop_ids = params.sampling.stop_ids;
  if (!params.ignore_eos) {
    record.stop_ids.insert(record.stop_ids.end(), config.eos_ids.begin(), config.eos_ids.end());
  }
  std::sort(record.stop_ids.begin(), record.stop_ids.end());
  record.stop_ids.erase(std::unique(record.stop_ids.begin(), record.stop_ids.end()),
                        record.stop_ids.end());
  record.stop = params.stop;
  record.include_stop = params.include_stop;
  record.skip_special = params.skip_special_tokens;
  record.logprobs = params.sampling.logprobs >= 0;
  record.prompt_logprobs = params.sampling.prompt_logprobs >= 0;
  record.tokenizer = tokenizer;
  return std::make_shared<RequestRecord>(std::move(record));
}

std::vector<Sequence> Frontend::State::make_sequences(const GenerateParams& params,
                                                      const RecordConfig& record,
                                                      std::vector<int32_t> prompt) const {
  Sequence sequence;
  sequence.group = record.group;
  sequence.priority = params.priority;
  if (!params.cache_salt.empty()) {
    sequence.prefix_salt = std::hash<std::string>{}(salt_key + params.cache_salt);
  }
  sequence.tokens = std::move(prompt);
  sequence.prompt_tokens = record.prompt_tokens;
  sequence.tokens.insert(sequence.tokens.end(), record.prior.begin(), record.prior.end());
  sequence.sampling = params.sampling;
  sequence.sampling.seed = record.seed;
  sequence.sampling.max_tokens = record.max_tokens;
  sequence.sampling.min_tokens = record.min_tokens;
  sequence.sampling.stop_ids = record.stop_ids;
  std::vector<Sequence> sequences(record.outputs, sequence);
  for (int32_t i = 0; i < record.outputs; ++i) {
    sequences[i].id = sequence_id(record.group, i);
    sequences[i].output_index = static_cast<uint32_t>(i);
  }
  return sequences;
}

void Frontend::State::forget(const RequestRecord& record) {
  Shard& shard = shard_of(record.config().group);
  {
    std::lock_guard lock(shard.mutex);
    shard.requests.erase(record.config().group);
  }
  records.remove(record);
}

void Frontend::State::submit(const std::shared_ptr<RequestRecord>& record,
                             std::vector<Sequence> sequences) {
  const uint64_t group = record->config().group;
  Shard& shard = shard_of(group);
  {
    std::lock_guard lock(shard.mutex);
    shard.requests[group] = {record, record->config().outputs};
  }
  bool accepted = false;
  try {
    accepted = engine.submit(std::move(sequences));
  } catch (...) {
    forget(*record);
    throw;
  }
  if (!accepted) {
    forget(*record);
    fail(ErrorCode::kResourceExhausted, "the queue is full: {} requests are live",
         records.live_count());
  }
  if (!record->ended()) return;
  // Aborted by its id while it was being submitted.
  for (int32_t i = 0; i < record->config().outputs; ++i) engine.abort(sequence_id(group, i));
}

void Frontend::State::dispatch(std::vector<EngineEvent>&& events) {
  std::vector<std::vector<EngineEvent>> parts(shards.size());
  for (EngineEvent& event : events) {
    parts[group_of(event.id) % shards.size()].push_back(std::move(event));
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    if (parts[i].empty()) continue;
    Shard& shard = *shards[i];
    shard.thread.post([this, &shard, part = std::move(parts[i])] { apply(shard, part); });
  }
}

void Frontend::State::apply(Shard& shard, const std::vector<EngineEvent>& events) {
  RequestRecord::Callbacks due;
  for (const EngineEvent& event : events) {
    std::shared_ptr<RequestRecord> record;
    {
      std::lock_guard lock(shard.mutex);
      const auto at = shard.requests.find(group_of(event.id));
      if (at == shard.requests.end()) continue;
      record = at->second.record;
      if (event.finish != FinishReason::kNone && --at->second.open == 0) shard.requests.erase(at);
    }
    if (record->append(output_of(event.id), event, due)) engine.abort(event.id);
    if (record->ended()) records.mark_ended(record);
  }
  for (const auto& callback : due) callback();
}

bool Frontend::State::end(const std::shared_ptr<RequestRecord>& record, FinishReason finish,
                          const std::string& error) {
  RequestRecord::Callbacks due;
  if (!record->end(-1, finish, error, due)) return false;
  const RecordConfig& request = record->config();
  for (int32_t i = 0; i < request.outputs; ++i) engine.abort(sequence_id(request.group, i));
  records.mark_ended(record);
  for (const auto& callback : due) callback();
  return true;
}

Frontend::Frontend(EngineApi& engine, const Tokenizer* tokenizer, FrontendConfig config)
    : state_(std::make_unique<State>(engine, tokenizer, std::move(config))) {
  engine.set_sink([state = state_.get()](std::vector<EngineEvent>&& events) {
    state->dispatch(std::move(events));
  });
}

Frontend::~Frontend() {
  stop_accepting();
  state_->engine.set_sink(nullptr);
  state_->intake.clear();
  for (const auto& record : state_->records.live()) {
    state_->end(record, FinishReason::kError, "the server is going down");
  }
}

std::unique_ptr<OutputStream> Frontend::generate(GenerateParams params) {
  State& state = *state_;
  const auto check_accepting = [&state] {
    if (!state.accepting) fail(ErrorCode::kUnavailable, "the server is shutting down");
  };
  check_accepting();
  check_request(params, state.config, state.tokenizer, state.max_token_bytes);
  tidy_token_lists(params);
  std::vector<int32_t> prompt =
      params.text ? state.tokenizer->encode(*params.text, params.add_special_tokens)
                  : std::move(params.token_ids);
  const int32_t max_tokens = check_lengths(params, prompt.size(), state.config);
  const auto record = state.make_record(params, prompt, max_tokens);
  state.records.add(record);
  auto stream = RequestRecord::read(record);
  if (max_tokens == 0 && !record->config().prompt_logprobs) {  // nothing to compute
    state.end(record, FinishReason::kLength, "");
  } else if (record->ended()) {  // the prior tokens ended it
    state.records.mark_ended(record);
  } else {
    state.submit(record, state.make_sequences(params, record->config(), std::move(prompt)));
  }
  return stream;
}

std::unique_ptr<OutputStream> Frontend::attach(const std::string& request_id,
                                               const std::vector<int32_t>& from_token_index) {
  auto record = state_->records.find(request_id);
  if (record == nullptr) {
    fail(ErrorCode::kNotFound, "request_id \"{}\" is neither live nor did it end within {} s",
         request_id, state_->config.keep.count() / 1000);
  }
  return RequestRecord::read(std::move(record), from_token_index);
}

bool Frontend::abort(const std::string& request_id) {
  const auto record = state_->records.find(request_id);
  return record != nullptr && state_->end(record, FinishReason::kAborted, "");
}

bool Frontend::post(std::function<void()> work, int64_t bytes) {
  State& state = *state_;
  if (state.intake_bytes.fetch_add(bytes) + bytes > state.config.max_intake_bytes) {
    state.intake_bytes.fetch_sub(bytes);
    return false;
  }
  const uint64_t turn = state.next_intake.fetch_add(1, std::memory_order_relaxed);
  state.intake[turn % state.intake.size()]->post([&state, bytes, work = std::move(work)] {
    work();
    state.intake_bytes.fetch_sub(bytes);
  });
  return true;
}

void Frontend::stop_accepting() { state_->accepting = false; }

void Frontend::abort_all() {
  for (const auto& record : state_->records.live()) {
    state_->end(record, FinishReason::kAborted, "");
  }
}

std::vector<int32_t> Frontend::tokenize(const std::string& text, bool add_special) const {
  if (state_->tokenizer == nullptr) {
    fail(ErrorCode::kFailedPrecondition, "this model has no tokenizer");
  }
  return state_->tokenizer->encode(text, add_special);
}

std::string Frontend::detokenize(const std::vector<int32_t>& ids, bool skip_special) const {
  if (state_->tokenizer == nullptr) {
    fail(ErrorCode::kFailedPrecondition, "this model has no tokenizer");
  }
  check_token_ids("token_ids", ids, state_->config.vocab);
  return state_->decode(ids, skip_special);
}

int32_t Frontend::live_requests() const { return state_->records.live_count(); }
int64_t Frontend::record_bytes() const { return state_->records.ended_bytes(); }
const FrontendConfig& Frontend::config() const { return state_->config; }
const Tokenizer* Frontend::tokenizer() const { return state_->tokenizer; }

}  // namespace trireme
