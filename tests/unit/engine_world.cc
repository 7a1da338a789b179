#include "tests/unit/engine_world.h"

#include <random>

#include "base/log.h"
#include "parallel/layout.h"

namespace trireme {

InstanceOptions small_options(const std::string& fixture, const std::string& layout) {
  InstanceOptions options;
  options.model = std::string(TRIREME_FIXTURES) + "/models/" + fixture;
  options.layout = layout;
  options.threads = 1;
  options.max_context = 192;
  options.max_running = 48;
  options.kv_memory = 64 << 20;
  return options;
}

EngineWorld::EngineWorld(const InstanceOptions& options) {
  log::init("error");
  const int ranks = parse_layout(options.layout).world();
  auto controls = make_thread_communicators(ranks, "control");
  for (auto& control : controls) {
    threads_.emplace_back([this, &options, moved = std::move(control)]() mutable {
      serve(std::move(moved), options);
    });
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return started_; });
  if (!start_error_) return;
  lock.unlock();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  std::rethrow_exception(start_error_);
}

EngineWorld::~EngineWorld() { stop(); }

void EngineWorld::serve(std::unique_ptr<Communicator> control, const InstanceOptions& options) {
  const bool first = control->rank() == 0;
  std::unique_ptr<Instance> instance;
  try {
    if (options.device == "cuda") {  // one rank, as a process of its own is
      int argc = 0;
      char** argv = nullptr;
      const MpiEnvironment alone(&argc, &argv);
      instance = std::make_unique<Instance>(alone, options);
    } else {
      instance = std::make_unique<Instance>(std::move(control), options);
    }
  } catch (...) {
    if (!first) return;
    const std::lock_guard lock(mutex_);
    start_error_ = std::current_exception();
    started_ = true;
    changed_.notify_all();
    return;
  }
  if (!first) {
    try {
      instance->worker().run();
    } catch (const std::exception&) {  // rank 0 tells
    }
    return;
  }
  instance->engine().set_sink(
      [this](std::vector<EngineEvent>&& events) { take(std::move(events)); });
  std::unique_lock lock(mutex_);
  instance_ = instance.get();
  started_ = true;
  changed_.notify_all();
  lock.unlock();
  std::exception_ptr error;
  try {
    instance->engine().run();
  } catch (...) {
    error = std::current_exception();
  }
  lock.lock();
  engine_error_ = error;
  changed_.notify_all();
  changed_.wait(lock, [this] { return released_; });
}

void EngineWorld::take(std::vector<EngineEvent>&& events) {
  const std::lock_guard lock(mutex_);
  for (EngineEvent& event : events) {
    Output& output = outputs_[event.id];
    if (output.finish != FinishReason::kNone) ++output.late_events;
    if (event.token >= 0) {
      output.tokens.push_back(event.token);
      output.logprobs.push_back(event.logprob);
      output.top.push_back(std::move(event.top));
    }
    output.prompt.insert(output.prompt.end(), event.prompt.begin(), event.prompt.end());
    for (auto& top : event.prompt_top) output.prompt_top.push_back(std::move(top));
    if (event.cached_tokens >= 0) output.cached = event.cached_tokens;
    if (event.finish != FinishReason::kNone) output.finish = event.finish;
  }
  changed_.notify_all();
}

bool EngineWorld::submit(std::vector<Sequence> sequences, SequenceId* first) {
  *first = next_id_;
  for (Sequence& sequence : sequences) sequence.id = next_id_++;
  return engine().submit(std::move(sequences));
}

Output EngineWorld::wait(SequenceId id) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return outputs_[id].finish != FinishReason::kNone; });
  return outputs_[id];
}

void EngineWorld::wait_tokens(SequenceId id, size_t tokens) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return outputs_[id].tokens.size() >= tokens || outputs_[id].finish != FinishReason::kNone;
  });
}

std::vector<Output> EngineWorld::run(const std::vector<Sequence>& sequences) {
  SequenceId first = 0;
  std::vector<Output> outputs;
  if (!submit(sequences, &first)) return outputs;
  for (size_t i = 0; i < sequences.size(); ++i) outputs.push_back(wait(first + i));
  return outputs;
}

void EngineWorld::stop() {
  if (threads_.empty()) return;
  engine().stop();
  {
    const std::lock_guard lock(mutex_);
    released_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

Sequence random_sequence(uint64_t seed, int vocab, int prompt, int max_tokens, bool sampled) {
  std::mt19937_64 random(seed * 131 + 7);
  const auto token = [&] { return static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)); };
  const auto real = [&](float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random);
  };
  Sequence sequence;
  for (int i = 0; i < prompt; ++i) sequence.tokens.push_back(token());
  sequence.prompt_tokens = prompt;
  SamplingParams& params = sequence.sampling;
  params.max_tokens = max_tokens;
  params.temperature = 0.0f;
  if (!sampled) return sequence;
  params.seed = random();
  params.temperature = seed % 5 == 0 ? 0.0f : real(0.4f, 1.5f);
  if (seed % 2) params.top_k = 5 + static_cast<int32_t>(random() % 60);
  if (seed % 3) params.top_p = real(0.5f, 0.99f);
  if (seed % 4 == 1) params.min_p = real(0.0f, 0.1f);
  if (seed % 3 != 1) params.repetition_penalty = real(0.8f, 1.4f);
  if (seed % 2) params.presence_penalty = real(-1.0f, 1.5f);
  if (seed % 4) params.frequency_penalty = real(-0.5f, 1.0f);
  params.logit_bias = {{token(), 2.0f}, {token(), -3.0f}};
  params.banned_tokens = {token(), token()};
  params.stop_ids = {token()};
  params.min_tokens = max_tokens / 2;
  sequence.output_index = static_cast<uint32_t>(seed % 3);
  return sequence;
}

}  // namespace trireme
