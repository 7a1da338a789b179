// A served model whose ranks are threads of the test, and what comes out of its engine.
#pragma once

#include <condition_variable>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/instance.h"

namespace trireme {

struct Output {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<TokenLogprob>> top;
  std::vector<TokenLogprob> prompt;
  std::vector<std::vector<TokenLogprob>> prompt_top;
  int32_t cached = -1;
  FinishReason finish = FinishReason::kNone;
  int late_events = 0;  // after the last one: must stay 0
};

// Options for a fixture model, small enough for a test: 1 thread, reference arithmetic.
InstanceOptions small_options(const std::string& fixture, const std::string& layout);

class EngineWorld {
 public:
  // As many ranks as the layout has. Throws what rank 0's Instance throws.
  explicit EngineWorld(const InstanceOptions& options);
  ~EngineWorld();  // stops and joins

  Engine& engine() { return instance_->engine(); }
  Instance& instance() { return *instance_; }

  // False if the queue was full. Ids are given here, from `*first` on.
  bool submit(std::vector<Sequence> sequences, SequenceId* first);
  Output wait(SequenceId id);
  // Waits until the output has that many tokens, or has ended.
  void wait_tokens(SequenceId id, size_t tokens);
  // Submits all at once and waits for all.
  std::vector<Output> run(const std::vector<Sequence>& sequences);
  Output run_one(const Sequence& sequence) { return run({sequence})[0]; }
  void stop();  // returns when every rank has ended

  std::exception_ptr engine_error() const { return engine_error_; }

 private:
  void serve(std::unique_ptr<Communicator> control, const InstanceOptions& options);
  void take(std::vector<EngineEvent>&& events);

  std::vector<std::thread> threads_;
  Instance* instance_ = nullptr;  // rank 0's, alive until stop()
  std::exception_ptr start_error_, engine_error_;
  bool started_ = false, released_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<SequenceId, Output> outputs_;
  SequenceId next_id_ = 1;
};

// A request with a random prompt and, if `sampled`, random sampling parameters of every kind.
Sequence random_sequence(uint64_t seed, int vocab, int prompt, int max_tokens, bool sampled);

}  // namespace trireme
