#include "runtime/request_record.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.h"

namespace trireme {

RequestRecord::RequestRecord(RecordConfig config)
    : config_(std::move(config)), outputs_(config_.outputs), open_(config_.outputs) {
  for (Output& output : outputs_) {
    if (config_.tokenizer != nullptr) {
      output.detokenizer.emplace(*config_.tokenizer, config_.skip_special);
    }
    output.stop = StopStrings(config_.stop, config_.include_stop);
    output.prompt_done = !config_.prompt_logprobs;
  }
  replay_prior();
}

void RequestRecord::replay_prior() {
  Output& output = outputs_[0];
  for (size_t i = 0; i < config_.prior.size(); ++i) {
    if (output.finish != FinishReason::kNone) {
      fail(ErrorCode::kInvalidArgument,
           "prior_token_ids: token {} ended the output ({}), yet {} more follow", i - 1,
           output.stop_id >= 0 ? "a stop id" : "a stop string", config_.prior.size() - i);
    }
    const int32_t token = config_.prior[i];
    const bool stop_allowed = static_cast<int32_t>(i) >= config_.min_tokens;
    if (take_token(output, token)) {
      finish_output(output, FinishReason::kStop);
    } else if (stop_allowed && is_stop_id(token)) {
      output.stop_id = token;
      finish_output(output, FinishReason::kStop);
    }
  }
  if (output.finish == FinishReason::kNone && !config_.prior.empty() &&
      static_cast<int32_t>(output.tokens.size()) >= config_.max_tokens) {
    finish_output(output, FinishReason::kLength);
  }
}

bool RequestRecord::is_stop_id(int32_t token) const {
  return std::find(config_.stop_ids.begin(), config_.stop_ids.end(), token) !=
         config_.stop_ids.end();
}

bool RequestRecord::take_token(Output& output, int32_t token) {
  const auto index = static_cast<int32_t>(output.tokens.size());
  output.tokens.push_back(token);
  int match = -1;
  // A model's vocabulary may be padded beyond its tokenizer's.
  const bool has_text = output.detokenizer.has_value() && token < config_.tokenizer->vocab_size();
  if (has_text && !(index >= config_.min_tokens && is_stop_id(token))) {
    const std::string piece = output.detokenizer->push(token);
    if (index < config_.min_tokens) {
      output.text += piece;
    } else {
      match = output.stop.push(piece, output.text);
    }
  }
  output.text_end.push_back(static_cast<uint32_t>(output.text.size()));
  if (match >= 0) output.stop_text = output.stop.string(match);
  return match >= 0;
}

// `output.stop_text` is set if a stop string ended it: then the text is already cut.
void RequestRecord::finish_output(Output& output, FinishReason finish) {
  if (output.stop_text.empty() && output.detokenizer.has_value()) {
    const int match = output.stop.push(output.detokenizer->finish(), output.text);
    if (match >= 0) {
      output.stop_text = output.stop.string(match);
      if (finish == FinishReason::kLength) finish = FinishReason::kStop;
    } else {
      output.stop.finish(output.text);
    }
  }
  output.detokenizer.reset();
  output.stop = StopStrings();
  output.finish = finish;
  output.prompt_done = true;
  --open_;
}

void RequestRecord::take_prompt_logprobs(Output& output, const EngineEvent& event) {
  const size_t wanted = config_.prompt_tokens > 0 ? config_.prompt_tokens - 1 : 0;
  for (size_t i = 0; i < event.prompt.size() && output.prompt_logprobs.size() < wanted; ++i) {
    TokenInfo info{event.prompt[i].token, event.prompt[i].logprob, {}};
    if (i < event.prompt_top.size()) info.top = event.prompt_top[i];
    output.prompt_logprobs.push_back(std::move(info));
  }
}

bool RequestRecord::append(int32_t index, const EngineEvent& event, Callbacks& due) {
  std::lock_guard lock(mutex_);
  Output& output = outputs_.at(index);
  if (output.finish != FinishReason::kNone) return false;
  if (event.cached_tokens >= 0) output.cached_tokens = event.cached_tokens;
  if (config_.prompt_logprobs) take_prompt_logprobs(output, event);
  bool matched = false;
  const size_t prior = index == 0 ? config_.prior.size() : 0;
  // An engine that was asked for no tokens may still sample one.
  if (event.token >= 0 && static_cast<int32_t>(output.tokens.size()) < config_.max_tokens) {
    output.prompt_done = true;
    if (config_.logprobs) output.logprobs.push_back({event.token, event.logprob, event.top});
    if (output.tokens.size() == prior) output.first_token = event.time;
    output.last_token = event.time;
    matched = take_token(output, event.token);
  }
  if (matched) {
    finish_output(output, FinishReason::kStop);
  } else if (event.finish != FinishReason::kNone) {
    if (event.finish == FinishReason::kStop) output.stop_id = event.token;
    if (event.finish == FinishReason::kError) {
      output.error = "no token could be chosen, or the engine failed: the server's log says why";
    }
    finish_output(output, event.finish);
  }
  notify(index, due);
  return matched && event.finish == FinishReason::kNone;
}

bool RequestRecord::end(int32_t index, FinishReason finish, const std::string& error,
                        Callbacks& due) {
  std::lock_guard lock(mutex_);
  bool any = false;
  for (int32_t i = 0; i < config_.outputs; ++i) {
    Output& output = outputs_[i];
    if ((index >= 0 && i != index) || output.finish != FinishReason::kNone) continue;
    output.error = error;
    finish_output(output, finish);
    notify(i, due);
    any = true;
  }
  return any;
}

bool RequestRecord::ended() const {
  std::lock_guard lock(mutex_);
  return open_ == 0;
}

int64_t RequestRecord::bytes() const {
  const auto infos = [](const std::vector<TokenInfo>& list) {
    size_t sum = list.capacity() * sizeof(TokenInfo);
    for (const TokenInfo& info : list) sum += info.top.capacity() * sizeof(TokenLogprob);
    return sum;
  };
  std::lock_guard lock(mutex_);
  size_t sum = sizeof(*this) + config_.echo_ids.size() * 4 + config_.echo_text.size() +
               config_.prior.size() * 4;
  for (const std::string& stop : config_.stop) sum += stop.size() + sizeof(stop);
  for (const Output& output : outputs_) {
    sum += sizeof(output) + output.tokens.capacity() * 4 + output.text_end.capacity() * 4 +
           output.text.capacity() + infos(output.logprobs) + infos(output.prompt_logprobs);
  }
  return static_cast<int64_t>(sum);
}

// ---- readers

class RequestRecord::Reader final : public OutputStream {
 public:
  struct Cursor {
    int32_t next = 0;        // the next token's index; negative within the echo
    uint32_t text = 0;       // bytes of the text already taken
    size_t prompt_next = 0;  // prompt log-probabilities already taken
    bool ended = false;
  };

  Reader(std::shared_ptr<RequestRecord> record, std::vector<Cursor> cursors)
      : record_(std::move(record)), cursors_(std::move(cursors)) {
    std::lock_guard lock(record_->mutex_);
    record_->readers_.push_back(this);
  }
  ~Reader() override {
    std::lock_guard lock(record_->mutex_);
    std::erase(record_->readers_, this);
  }

  const std::string& request_id() const override { return record_->config_.request_id; }
  uint64_t seed() const override { return record_->config_.seed; }
  int32_t prompt_tokens() const override { return record_->config_.prompt_tokens; }

  std::optional<Delta> poll(size_t max_entries) override {
    std::lock_guard lock(record_->mutex_);
    const auto count = static_cast<int32_t>(cursors_.size());
    for (int32_t i = 0; i < count; ++i) {
      const int32_t output = (turn_ + i) % count;
      if (!ready(output)) continue;
      turn_ = (output + 1) % count;
      return take(output, std::max<size_t>(1, max_entries));
    }
    return std::nullopt;
  }

  bool ended() const override {
    return std::all_of(cursors_.begin(), cursors_.end(), [](const Cursor& c) { return c.ended; });
  }

  bool wait(std::chrono::milliseconds timeout) override {
    std::unique_lock lock(record_->mutex_);
    return record_->changed_.wait_for(lock, timeout, [&] { return any_ready() || ended(); });
  }

  void arm(std::function<void()> callback) override {
    {
      std::lock_guard lock(record_->mutex_);
      if (!any_ready()) {
        armed_ = std::move(callback);
        return;
      }
    }
    callback();
  }

  void on_give_up(std::function<void()> callback) override {
    std::lock_guard lock(record_->mutex_);
    given_up_ = std::move(callback);
  }
  std::function<void()> give_up() { return std::exchange(given_up_, nullptr); }

  // With the record's lock: whether poll() would take something of this output.
  bool ready(int32_t index) const {
    const Cursor& cursor = cursors_[index];
    const Output& output = record_->outputs_[index];
    if (cursor.ended || !output.prompt_done) return false;
    return cursor.next < static_cast<int32_t>(output.tokens.size()) ||
           output.finish != FinishReason::kNone;
  }
  std::function<void()> disarm() { return std::exchange(armed_, nullptr); }

 private:
  bool any_ready() const {
    for (size_t i = 0; i < cursors_.size(); ++i) {
      if (ready(static_cast<int32_t>(i))) return true;
    }
    return false;
  }

  Delta take(int32_t index, size_t budget);
  void take_tokens(const Output& output, Cursor& cursor, size_t budget, Delta& delta);

  std::shared_ptr<RequestRecord> record_;
  std::vector<Cursor> cursors_;
  int32_t turn_ = 0;
  std::function<void()> armed_, given_up_;
};

namespace {

// Takes infos[from…] into `to` until the budget is used up; at least one.
void take_infos(const std::vector<TokenInfo>& infos, size_t& from, size_t& budget,
                std::vector<TokenInfo>& to) {
  while (from < infos.size() && budget > 0) {
    const size_t cost = 1 + infos[from].top.size();
    budget -= std::min(budget, cost);
    to.push_back(infos[from++]);
  }
}

}  // namespace

Delta RequestRecord::Reader::take(int32_t index, size_t budget) {
  const RecordConfig& config = record_->config_;
  const Output& output = record_->outputs_[index];
  Cursor& cursor = cursors_[index];
  Delta delta;
  delta.output = index;
  delta.token_index = cursor.next;
  take_infos(output.prompt_logprobs, cursor.prompt_next, budget, delta.prompt_logprobs);
  if (budget == 0) return delta;
  if (cursor.next < 0) {
    if (cursor.next == -config.prompt_tokens) delta.text = config.echo_text;
    const auto begin = config.echo_ids.end() + cursor.next;
    const auto count =
        std::min<int64_t>(-cursor.next, static_cast<int64_t>(std::min<size_t>(budget, INT32_MAX)));
    delta.token_ids.assign(begin, begin + count);
    cursor.next += static_cast<int32_t>(count);
    if (cursor.next == 0) cursor.next = static_cast<int32_t>(config.prior.size());
    return delta;
  }
  take_tokens(output, cursor, budget, delta);
  return delta;
}

void RequestRecord::Reader::take_tokens(const Output& output, Cursor& cursor, size_t budget,
                                        Delta& delta) {
  const RecordConfig& config = record_->config_;
  const auto prior = static_cast<int32_t>(delta.output == 0 ? config.prior.size() : 0);
  const auto size = static_cast<int32_t>(output.tokens.size());
  const size_t max_text = budget > kAll / kTextPerEntry ? kAll : budget * kTextPerEntry;
  const auto text_at = [&output](int32_t token) {
    return token == 0 ? 0 : output.text_end[token - 1];
  };
  int32_t end = cursor.next;
  while (end < size && budget > 0 && text_at(end) - cursor.text < max_text) {
    --budget;
    if (config.logprobs) {
      const TokenInfo& info = output.logprobs[end - prior];
      budget -= std::min(budget, info.top.size());
      delta.logprobs.push_back(info);
    }
    ++end;
  }
  delta.token_ids.assign(output.tokens.begin() + cursor.next, output.tokens.begin() + end);
  const bool last = end == size && output.finish != FinishReason::kNone;
  const uint32_t text_end = last ? static_cast<uint32_t>(output.text.size()) : text_at(end);
  delta.text = output.text.substr(cursor.text, text_end - cursor.text);
  cursor.next = end;
  cursor.text = text_end;
  if (!last) return;
  cursor.ended = true;
  delta.finish = output.finish;
  delta.stop_text = output.stop_text;
  delta.stop_id = output.stop_id;
  delta.error = output.error;
  delta.prompt_tokens = config.prompt_tokens;
  delta.cached_tokens = output.cached_tokens;
  delta.completion_tokens = size;
  delta.first_token = output.first_token;
  delta.last_token = output.last_token;
}

void RequestRecord::notify(int32_t output, Callbacks& due) {
  for (Reader* reader : readers_) {
    if (!reader->ready(output)) continue;
    if (auto callback = reader->disarm()) due.push_back(std::move(callback));
  }
  changed_.notify_all();
}

void RequestRecord::give_up(Callbacks& due) {
  std::lock_guard lock(mutex_);
  for (Reader* reader : readers_) {
    if (auto callback = reader->give_up()) due.push_back(std::move(callback));
  }
}

std::unique_ptr<OutputStream> RequestRecord::read(std::shared_ptr<RequestRecord> record) {
  const RecordConfig& config = record->config_;
  std::vector<int32_t> from(config.outputs, config.echo ? -config.prompt_tokens : 0);
  return read(std::move(record), from);
}

std::unique_ptr<OutputStream> RequestRecord::read(std::shared_ptr<RequestRecord> record,
                                                  const std::vector<int32_t>& from) {
  const RecordConfig& config = record->config_;
  if (from.size() > static_cast<size_t>(config.outputs)) {
    fail(ErrorCode::kInvalidArgument, "from_token_index: {} values for {} output(s)", from.size(),
         config.outputs);
  }
  std::vector<Reader::Cursor> cursors(config.outputs);
  {
    std::lock_guard lock(record->mutex_);
    for (int32_t i = 0; i < config.outputs; ++i) {
      const Output& output = record->outputs_[i];
      const auto size = static_cast<int32_t>(output.tokens.size());
      const auto prior = static_cast<int32_t>(i == 0 ? config.prior.size() : 0);
      const int32_t at = static_cast<size_t>(i) < from.size() ? from[i] : 0;
      if (at > size || (at < 0 && !(config.echo && at == -config.prompt_tokens))) {
        fail(ErrorCode::kInvalidArgument,
             "from_token_index: output {} has tokens 0 to {}, cannot read from {}", i, size, at);
      }
      Reader::Cursor& cursor = cursors[i];
      cursor.next = at < 0 ? at : std::max(at, prior);
      const int32_t seen = std::max(cursor.next, prior);
      cursor.text = seen == 0 ? 0 : output.text_end[seen - 1];
      if (at > 0) cursor.prompt_next = std::numeric_limits<size_t>::max();  // seen already
    }
  }
  return std::make_unique<Reader>(std::move(record), std::move(cursors));
}

}  // namespace trireme
