// Between a client's request and the engine: tokenizes, validates, keeps every live request's
// record, detokenizes and finds stop strings on its own threads.
//
// A request's record holds all of its outputs' tokens until 60 s after its end, so a slow reader
// holds up nobody: it is a cursor over the record, and the record is bounded by max_tokens.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine.h"
#include "runtime/model/config.h"
#include "runtime/sampling_params.h"
#include "runtime/tokenizer.h"

namespace trireme {

struct GenerateParams {
  std::string request_id;           // empty: chosen here
  std::optional<std::string> text;  // exactly one of text and token_ids
  std::vector<int32_t> token_ids;
  std::vector<int32_t> prior_token_ids;
  SamplingParams sampling;          // stop_ids as the client gave them
  bool seed_given = false;          // otherwise one is drawn
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool include_stop = false;
  int32_t n = 1;
  bool echo = false;
  int32_t priority = 0;
  bool add_special_tokens = true;
  bool skip_special_tokens = true;
  std::string cache_salt;
};

struct TokenInfo {
  int32_t token = -1;
  float logprob = 0.0f;
  std::vector<TokenLogprob> top;
};

// New tokens of one output since the last delta that this reader took.
struct Delta {
  int32_t output = 0;
  int32_t token_index = 0;  // of token_ids[0] among the generated tokens
  std::vector<int32_t> token_ids;
  std::string text;
  std::vector<TokenInfo> logprobs;         // if asked for: one per token id
  std::vector<TokenInfo> prompt_logprobs;  // in the first delta, if asked for
  FinishReason finish = FinishReason::kNone;
  std::string stop_text;
  int32_t stop_id = -1;
  std::string error;
  int32_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;  // valid with finish
};

// A reader of one request's outputs. One thread at a time.
class OutputStream {
 public:
  virtual ~OutputStream() = default;
  virtual const std::string& request_id() const = 0;
  virtual uint64_t seed() const = 0;
  virtual int32_t prompt_tokens() const = 0;

  // The next delta of any output, coalesced with all that is ready for that output; nullopt if
  // nothing is ready. Every output's last delta has finish set, once.
  virtual std::optional<Delta> poll() = 0;
  virtual bool ended() const = 0;  // every output's last delta was taken
  // Blocks until poll() would give something or the stream has ended; false on timeout.
  virtual bool wait(std::chrono::milliseconds timeout) = 0;
  // Called (on a frontend thread, once per arm) when poll() has something; at once if it has now.
  virtual void arm(std::function<void()> ready) = 0;
};

struct FrontendConfig {
  int threads = 2;
  int32_t max_context = 2048;
  int64_t vocab = 0;
  std::vector<int32_t> eos_ids;
  int32_t max_outputs = 128;      // n
  int32_t max_logprobs = 20;      // -1: the vocabulary (offline tools)
  int32_t max_stop_strings = 16;
  std::chrono::seconds keep{60};  // how long an ended request can be attached to
};

class Frontend {
 public:
  // `engine` must outlive it; `tokenizer` may be null (token ids only). Sets the engine's sink.
  Frontend(Engine& engine, const Tokenizer* tokenizer, FrontendConfig config);
  ~Frontend();

  // Throws kInvalidArgument naming the field and the limit, kResourceExhausted when the queue is
  // full, kAlreadyExists for an id in use, kUnavailable while stopping.
  std::unique_ptr<OutputStream> generate(GenerateParams params);
  // Throws kNotFound; kInvalidArgument for an index past what exists.
  std::unique_ptr<OutputStream> attach(const std::string& request_id,
                                       const std::vector<int32_t>& from_token_index);
  bool abort(const std::string& request_id);  // false if it is not live

  std::vector<int32_t> tokenize(const std::string& text, bool add_special) const;
  std::string detokenize(const std::vector<int32_t>& ids, bool skip_special) const;
  int32_t live_requests() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme
