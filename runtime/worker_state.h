// The insides of a Worker: worker.cc brings it up and launches steps, worker_sample.cc wants logits
// and takes tokens, worker_run.cc is the loop of ranks other than 0.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "runtime/model/activation_flow.h"
#include "runtime/model/tensor_sums.h"
#include "runtime/sampler.h"
#include "runtime/token_return.h"
#include "runtime/worker.h"
#include "runtime/worker_slots.h"

namespace trireme {

// A logits row that somebody wants, and the result that it belongs to.
struct Wanted {
  int32_t token_index = 0;  // in the step's tokens
  size_t result = 0;
  SampleRow row;
};

// A step that is launched and not finished.
struct LaunchedStep {
  StepResult result;
  uint64_t number = 0;  // of Sampler::queue; 0: the result is whole
  bool told = false;    // the first stage hears its tokens from the device
  // Of the queued rows: which of the result's they are, the sequence's admission to its slot, and
  // the position that they sample for.
  struct Row {
    size_t result = 0;
    uint64_t admission = 0;
    int32_t position = 0;
  };
  std::vector<Row> rows;
};

// How long the host waits for a step on the device.
inline constexpr std::chrono::seconds kStepLimit{300};

inline int64_t logit_rows(const WorkerConfig& config, const Backend& backend) {
  return std::min<int64_t>(config.max_tokens, backend.max_logit_rows());
}

struct Worker::State {
  State(const ModelConfig& model, World& world, Backend& backend, DecoderWeights weights,
        KvCache kv, const WorkerConfig& config);

  void check(const StepPlan& plan) const;
  std::span<const int32_t> known_tokens(const StepPlan& plan);
  void prepare(const StepPlan& plan, LaunchedStep& launch);
  void build_batch(const StepPlan& plan);
  void compute(const StepPlan& plan);
  void want_logits(const StepPlan& plan, StepResult& result);
  void want_prompt(const StepPlan& plan, const PlanRow& row, size_t result);
  void want_sample(const PlanRow& row, size_t result);
  void count_for_penalties();
  bool queue_sampling(LaunchedStep& step);
  void take_tokens(const StepPlan& plan, LaunchedStep& launch);
  void sample(StepResult& result);
  // What this rank's GPU waits for others through; null if for nobody.
  DeviceCommunicator* device_group() const {
    return world.device_tp ? world.device_tp.get() : world.device_data.get();
  }
  void deliver(const Wanted& wanted, Sampled& sampled, StepResult& result) const;
  void remember(const StepPlan& plan, const StepResult& result);
  void collect(LaunchedStep& step);
  void finish(StepResult& result);
  bool is_done(const LaunchedStep& launch) const;
  void look_after(std::chrono::steady_clock::time_point& looked);
  void finish_oldest(StepResult& result, std::vector<std::byte>& message);
  void attend(StepResult& result, std::vector<std::byte>& message);
  bool wait_for_device_or_order();
  void take_plan(std::vector<std::byte>& message, StepPlan& plan);

  const ModelConfig& model;
  World& world;
  WorkerConfig config;
  KvGroups groups;
  KvCache cache;
  WorkerSlots slots;
  std::unique_ptr<TensorSums> sums;
  Decoder decoder;
  StageEdge edge;
  ActivationFlow flow;
  Backend& backend;
  std::unique_ptr<Sampler> sampler;  // last stage
  std::unique_ptr<TokenReturn> tokens_back;
  uint64_t step = 0;   // for messages
  uint64_t last_plan;  // its hash: what the next one's begins with
  bool omits_edges = false;
  std::deque<LaunchedStep> launched;  // not finished yet, the oldest first
  std::vector<LaunchedStep> spare;    // for reuse

  // Reused by every step.
  DecoderBatch batch;
  std::vector<AttentionRow> rows;
  std::vector<int32_t> tokens;       // where the plan's leave some open
  std::vector<int32_t> token_slots;  // as StepInputs::token_slots
  std::vector<Wanted> wanted;
  std::vector<int32_t> logit_tokens;
  std::vector<SampleRow> sample_rows;
  std::vector<int32_t> sample_slots;
  std::vector<int32_t> chosen;
  std::vector<Sampled> sampled;
};

}  // namespace trireme
