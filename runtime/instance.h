// One rank's share of a served model, brought up from a path: what `serve`, `generate`, `score` and
// `bench` all start from.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/dtype.h"
#include "base/spans.h"
#include "base/thread_pool.h"
#include "kernels/backend.h"
#include "parallel/world.h"
#include "runtime/engine.h"
#include "runtime/model/weight_source.h"
#include "runtime/scheduler.h"
#include "runtime/tokenizer.h"
#include "runtime/trace/request_log.h"
#include "runtime/worker.h"

namespace trireme {

struct InstanceOptions {
  std::string model;            // .gguf file or Hugging Face directory
  std::string layout;           // as parse_layout; empty: chosen
  std::string device = "auto";  // cpu, cuda; auto: cuda where every rank has a GPU of its own
  // "auto": the files' weights. "dummy": random weights of the shapes in config.json, for work on
  // performance without a checkpoint.
  std::string load_format = "auto";
  int threads = 0;            // compute threads of this rank; 0: cores / local ranks
  std::optional<CpuIsa> isa;  // default: the best of the machine
  std::string profile = "balanced";
  // Each overrides the profile's figure; 0 or less: the profile's.
  int32_t token_budget = 0, max_chunk = 0, max_rows = 0, max_running = 0, max_queue = 0;
  int32_t max_context = 0;  // 0: the model's, as far as the KV memory allows
  int32_t block_size = 0;   // tokens; 0: 16 on CPU, 32 on GPU, whose prefill reads blocks as tiles
  // Refuses backends on which a row's bits depend on the other rows of its step or on how its
  // prompt was cut into chunks: GPUs, whose products are chosen by the number of rows.
  bool deterministic = false;
  // Of weights and activations on GPUs: bf16, f16; auto: see element_of. The CPU multiplies
  // weights as the files have them.
  std::string dtype = "auto";
  std::string kv_dtype = "auto";  // f32, f16, bf16; auto: on CPU f32 for float32 weights, else
                                  // f16; on GPU `dtype`
  int64_t kv_memory = 0;          // bytes per rank; 0: what max_running sequences can use, at most
                                  // a share of the free memory
  bool prefix_cache = true;
  int steps_in_flight = 0;  // 0: one per pipeline stage, and one more with look_ahead
  // on, off. auto: on with GPUs, where launching only queues work, and with several stages.
  std::string look_ahead = "auto";
  StepWindow record;  // steps whose spans are recorded, for a trace
  // Of several ranks: a step that takes longer is stuck, and the world is ended (the first one has
  // four times as long). 0: no step is.
  double step_timeout_s = 120;
};

class Instance {
 public:
  // Collective: every rank of `environment` calls it with equal options. Checks layout and memory
  // before anything is loaded: kInvalidArgument for a wrong layout, kResourceExhausted stating
  // how much is missing on which host. An error on one rank is thrown on every rank.
  // The ranks of several processes are watched (parallel/watchdog.h): if one is lost or stuck, all
  // processes end. `connected` is for tests: called with the communicators, before anything else
  // refers to them.
  Instance(const MpiEnvironment& environment, const InstanceOptions& options,
           std::function<void(World&)> connected = {});
  // The same over any control communicator, on CPU, all ranks in this process: for tests.
  Instance(std::unique_ptr<Communicator> control, const InstanceOptions& options);
  ~Instance();

  World& world();
  const WeightSource& source() const;
  const ModelConfig& config() const;
  const Tokenizer* tokenizer() const;  // null for a model without tokenizer files; rank 0 only
  const SchedulerConfig& scheduler_config() const;
  const KvPoolConfig& pool_config() const;
  Backend& backend();
  ThreadPool& pool();
  Worker& worker();
  Engine& engine();  // rank 0 only
  // What InstanceOptions::record asked for; null without. The log of requests is on rank 0 only.
  const SpanRecorder* spans() const;
  const RequestLog* requests() const;
  int64_t weight_bytes() const;  // on this rank
  int64_t kv_bytes() const;

 private:
  void bring_up();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme
