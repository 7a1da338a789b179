// An engine without a model, for tests of everything above it, and a tokenizer of bytes.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "runtime/engine_api.h"
#include "runtime/tokenizer.h"
#include "runtime/unicode.h"

namespace trireme::test {

// Token ids 0 to 255 are the bytes; then kEos (special) and a few tokens of several bytes.
inline constexpr int32_t kEos = 256;
inline constexpr int32_t kWords = 257;
inline constexpr int64_t kVocab = 300;  // padded: the last ids have no token

inline std::string byte_alphabet(unsigned char byte) {
  // GPT-2's: printable Latin-1 stands for itself, the others follow from U+0100.
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  };
  std::string out;
  if (printable(byte)) {
    append_utf8(out, byte);
    return out;
  }
  char32_t next = 256;
  for (int b = 0; b < byte; ++b) next += printable(b) ? 0 : 1;
  append_utf8(out, next);
  return out;
}

inline Tokenizer byte_tokenizer(const std::vector<std::string>& words = {}) {
  TokenizerSpec spec;
  for (int b = 0; b < 256; ++b) spec.tokens.push_back(byte_alphabet(static_cast<unsigned char>(b)));
  spec.tokens.emplace_back();
  spec.added.push_back({kEos, "<eos>", true, false, false, false, false});
  for (const std::string& word : words) {
    std::string token;
    for (const char c : word) token += byte_alphabet(static_cast<unsigned char>(c));
    spec.tokens.push_back(token);
  }
  return Tokenizer(std::move(spec));
}

class ScriptedEngine final : public EngineApi {
 public:
  // The token that follows; by default the letters in turn, shifted by the output's index.
  using Script = std::function<int32_t(const Sequence& sequence)>;

  explicit ScriptedEngine(Script script = nullptr, size_t capacity = 1000)
      : script_(script ? std::move(script) : Script(letters)), capacity_(capacity) {}
  ~ScriptedEngine() override { stop(); }

  static int32_t letters(const Sequence& s) {
    return 'a' + static_cast<int32_t>((s.generated() + s.output_index) % 26);
  }

  void set_sink(Sink sink) override {
    std::lock_guard lock(sink_mutex_);
    sink_ = std::move(sink);
  }
  bool submit(std::vector<Sequence> sequences) override {
    std::lock_guard lock(mutex_);
    if (stopped_) fail(ErrorCode::kUnavailable, "the engine is stopping");
    if (live_.size() + sequences.size() > capacity_) return false;
    for (Sequence& sequence : sequences) {
      seen_.push_back(sequence);
      live_.push_back({std::move(sequence)});
    }
    return true;
  }
  void abort(SequenceId id) override {
    std::lock_guard lock(mutex_);
    ++aborts_;
    for (Live& live : live_) {
      if (live.sequence.id == id) live.aborted = true;
    }
  }
  EngineStats stats() const override {
    std::lock_guard lock(mutex_);
    EngineStats stats;
    stats.scheduler.running = static_cast<int32_t>(live_.size());
    stats.generated_tokens = generated_;
    return stats;
  }

  // One token for every live sequence, a second after the last ones. An aborted one gets `lag` more
  // tokens before it ends.
  void step() {
    std::vector<EngineEvent> events;
    {
      std::lock_guard lock(mutex_);
      ++clock_;
      for (auto at = live_.begin(); at != live_.end();) {
        EngineEvent event = next(*at);
        event.time += clock_;
        const bool last = event.finish != FinishReason::kNone;
        events.push_back(std::move(event));
        at = last ? live_.erase(at) : std::next(at);
      }
    }
    std::lock_guard lock(sink_mutex_);
    if (sink_ && !events.empty()) sink_(std::move(events));
  }
  void steps(int count) {
    for (int i = 0; i < count; ++i) step();
  }
  // Steps on a thread of its own until stop().
  void start(std::chrono::microseconds period) {
    thread_ = std::thread([this, period] {
      while (!ending_) {
        step();
        std::this_thread::sleep_for(period);
      }
    });
  }
  void stop() {
    ending_ = true;
    if (thread_.joinable()) thread_.join();
  }
  void refuse_all() {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }

  int lag = 0;
  size_t live() const {
    std::lock_guard lock(mutex_);
    return live_.size();
  }
  int aborts() const {
    std::lock_guard lock(mutex_);
    return aborts_;
  }
  std::vector<Sequence> seen() const {
    std::lock_guard lock(mutex_);
    return seen_;
  }

 private:
  struct Live {
    Sequence sequence;
    bool started = false;
    bool aborted = false;
    int late = 0;  // tokens since it was aborted
  };

  EngineEvent next(Live& live) {
    Sequence& sequence = live.sequence;
    EngineEvent event;
    event.id = sequence.id;
    if (!live.started) {
      live.started = true;
      event.cached_tokens = 3;
      if (sequence.sampling.prompt_logprobs >= 0) {
        for (int32_t i = 1; i < sequence.prompt_tokens; ++i) {
          event.prompt.push_back({sequence.tokens[i], -static_cast<float>(i)});
          event.prompt_top.emplace_back(sequence.sampling.prompt_logprobs,
                                        TokenLogprob{sequence.tokens[i], -static_cast<float>(i)});
        }
      }
      if (sequence.sampling.max_tokens == 0) event.finish = FinishReason::kLength;
      if (sequence.sampling.max_tokens == 0) return event;
    }
    if (live.aborted && live.late++ >= lag) {
      event.finish = FinishReason::kAborted;
      return event;
    }
    event.token = script_(sequence);
    if (event.token < 0) {  // the script's way to say that the engine failed
      event.finish = FinishReason::kError;
      return event;
    }
    event.logprob = -0.5f;
    event.top.assign(std::max(0, sequence.sampling.logprobs), {event.token, -0.5f});
    sequence.tokens.push_back(event.token);
    ++generated_;
    const SamplingParams& sampling = sequence.sampling;
    const bool may_stop = sequence.generated() > sampling.min_tokens;
    if (may_stop && std::find(sampling.stop_ids.begin(), sampling.stop_ids.end(), event.token) !=
                        sampling.stop_ids.end()) {
      event.finish = FinishReason::kStop;
    } else if (sequence.generated() >= sampling.max_tokens) {
      event.finish = FinishReason::kLength;
    }
    return event;
  }

  const Script script_;
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::list<Live> live_;
  std::vector<Sequence> seen_;
  int aborts_ = 0;
  std::chrono::seconds clock_{0};
  uint64_t generated_ = 0;
  bool stopped_ = false;
  std::mutex sink_mutex_;
  Sink sink_;
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

// Generates the bytes of `text`, one token each, then EOS.
inline ScriptedEngine::Script spell(std::string text) {
  return [text = std::move(text)](const Sequence& s) {
    const auto at = static_cast<size_t>(s.generated());
    return at < text.size() ? static_cast<int32_t>(static_cast<unsigned char>(text[at])) : kEos;
  };
}

}  // namespace trireme::test
