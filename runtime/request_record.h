// Everything that one request has put out. The engine's events are appended by one frontend
// thread; any number of readers follow, each with its own cursor, as slowly as they like.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine_api.h"
#include "runtime/output_stream.h"
#include "runtime/stop_strings.h"
#include "runtime/tokenizer.h"

namespace trireme {

// What a record needs to know of its request; fixed from the start.
struct RecordConfig {
  std::string request_id;
  uint64_t group = 0;  // numbers the request within this process
  uint64_t seed = 0;
  int32_t outputs = 1;
  int32_t prompt_tokens = 0;
  bool echo = false;
  std::vector<int32_t> echo_ids;  // the prompt, with echo
  std::string echo_text;
  std::vector<int32_t> prior;  // of output 0
  int32_t max_tokens = 0;      // as the context clips it
  int32_t min_tokens = 0;      // stop strings are looked for behind so many tokens
  std::vector<int32_t> stop_ids;
  std::vector<std::string> stop;
  bool include_stop = false;
  bool skip_special = true;
  bool logprobs = false;
  bool prompt_logprobs = false;
  const Tokenizer* tokenizer = nullptr;  // null: no text
};

class RequestRecord {
 public:
  using Callbacks = std::vector<std::function<void()>>;

  // Replays the prior tokens; output 0 has already ended if they end it. Throws kInvalidArgument
  // if tokens follow the one that ended it.
  explicit RequestRecord(RecordConfig config);
  RequestRecord(const RequestRecord&) = delete;
  RequestRecord& operator=(const RequestRecord&) = delete;

  const RecordConfig& config() const { return config_; }

  // Takes in one engine event of `output`; ignored once that output has ended. Readers' callbacks
  // that are now due are moved to `due`, to be called with no lock held. True if the output ended
  // by a stop string, so that the engine has to be told.
  bool append(int32_t output, const EngineEvent& event, Callbacks& due);
  // Ends one output, or all (-1), that had not ended. True if any had not.
  bool end(int32_t output, FinishReason finish, const std::string& error, Callbacks& due);

  // Tells the readers that they should go (OutputStream::on_give_up).
  void give_up(Callbacks& due);

  bool ended() const;
  int64_t bytes() const;  // about what it holds

  // Throws kInvalidArgument for an index past what exists. Missing indices are 0; prior tokens are
  // not repeated.
  static std::unique_ptr<OutputStream> read(std::shared_ptr<RequestRecord> record,
                                            const std::vector<int32_t>& from);
  // From the very start, the echo included.
  static std::unique_ptr<OutputStream> read(std::shared_ptr<RequestRecord> record);

 private:
  class Reader;
  struct Output {
    std::vector<int32_t> tokens;             // generated; prior ones first
    std::vector<uint32_t> text_end;          // text.size() once tokens[i] was taken in
    std::string text;                        // never shrinks
    std::vector<TokenInfo> logprobs;         // of the tokens after the prior ones
    std::vector<TokenInfo> prompt_logprobs;  // of positions 1 …
    bool prompt_done = false;
    FinishReason finish = FinishReason::kNone;
    std::string stop_text, error;
    int32_t stop_id = -1;
    int32_t cached_tokens = 0;
    std::chrono::steady_clock::time_point first_token, last_token;  // after the prior ones
    std::optional<StreamingDetokenizer> detokenizer;
    StopStrings stop;
  };

  bool is_stop_id(int32_t token) const;
  bool take_token(Output& output, int32_t token);  // true if a stop string is complete
  void take_prompt_logprobs(Output& output, const EngineEvent& event);
  void finish_output(Output& output, FinishReason finish);
  void replay_prior();
  void notify(int32_t output, Callbacks& due);

  const RecordConfig config_;
  mutable std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::vector<Output> outputs_;
  int32_t open_ = 0;  // outputs that have not ended
  std::vector<Reader*> readers_;
};

}  // namespace trireme
