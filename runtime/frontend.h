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

#include "runtime/engine_api.h"
#include "runtime/output_stream.h"
#include "runtime/sampling_params.h"
#include "runtime/tokenizer.h"

namespace trireme {

struct GenerateParams {
  std::string request_id;           // empty: chosen here
  std::optional<std::string> text;  // exactly one of text and token_ids
  std::vector<int32_t> token_ids;
  std::vector<int32_t> prior_token_ids;
  SamplingParams sampling;  // stop_ids as the client gave them
  bool seed_given = false;  // otherwise one is drawn
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

struct FrontendConfig {
  int threads = 2;  // detokenizing; as many again tokenize
  int32_t max_context = 2048;
  int64_t vocab = 0;
  std::vector<int32_t> eos_ids;
  int32_t max_outputs = 128;  // n
  int32_t max_logprobs = 20;  // -1: the vocabulary (offline tools)
  int32_t max_stop_strings = 16;
  std::chrono::milliseconds keep{60'000};  // how long an ended request can be attached to
  // Of ended requests' records, those included that only slow readers hold: see RecordStore.
  int64_t max_ended_bytes = 256ll << 20;
  int64_t max_intake_bytes = 256ll << 20;  // of posted work that no thread has taken up
};

class Frontend {
 public:
  // `engine` must outlive it; `tokenizer` may be null (token ids only). Sets the engine's sink.
  Frontend(EngineApi& engine, const Tokenizer* tokenizer, FrontendConfig config);
  // Every output that has not ended ends with kError.
  ~Frontend();

  // Throws kInvalidArgument naming the field and the limit, kResourceExhausted when the queue is
  // full, kAlreadyExists for an id in use or still attachable, kUnavailable while stopping.
  std::unique_ptr<OutputStream> generate(GenerateParams params);
  // Throws kNotFound; kInvalidArgument for an index past what exists.
  std::unique_ptr<OutputStream> attach(const std::string& request_id,
                                       const std::vector<int32_t>& from_token_index);
  // Every output that has not ended ends with kAborted now. False if the request is not live.
  bool abort(const std::string& request_id);

  // Runs `work` on a frontend thread, so that tokenizing holds up no caller. `bytes` is the size of
  // what it holds: false, and nothing is run, when too much waits already. `work` must not throw.
  bool post(std::function<void()> work, int64_t bytes);

  // From here on generate() throws kUnavailable; what is live goes on.
  void stop_accepting();
  void abort_all();

  std::vector<int32_t> tokenize(const std::string& text, bool add_special) const;
  std::string detokenize(const std::vector<int32_t>& ids, bool skip_special) const;
  int32_t live_requests() const;
  int64_t record_bytes() const;  // of ended requests that can still be attached to
  const FrontendConfig& config() const;
  const Tokenizer* tokenizer() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme
