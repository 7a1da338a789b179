// A whole model on N ranks that are threads of the test: what a worker does, without an engine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "parallel/communicator.h"
#include "parallel/device_communicator.h"
#include "parallel/stage_edge.h"
#include "runtime/model/activation_flow.h"
#include "runtime/model/decoder.h"
#include "runtime/model/tensor_sums_start.h"

namespace trireme {

struct RunOptions {
  LayoutSpec layout{{StageSpec{}}};
  CpuIsa isa = CpuIsa::kReference;
  DType kv_dtype = DType::kF32;  // on a GPU, also of weights and activations
  int block_size = 16;
  int sequences = 1;
  int max_context = 256;  // tokens of one sequence
  int64_t max_tokens = 1024;
  int gpu = -1;  // the index of this rank's GPU; -1: on CPU
};

// What connects the ranks of a layout; on GPUs, also their memories.
struct RankLinks {
  // Collective over `world`, which must outlive the links. `gpu` as in RunOptions.
  RankLinks(Communicator& world, const LayoutSpec& layout, int gpu);

  Communicator& world;
  std::unique_ptr<Communicator> tp;
  std::unique_ptr<DeviceCommunicator> device_tp;    // null with one tensor rank
  std::unique_ptr<DeviceCommunicator> device_data;  // null with one stage
  StageGroups stages;
};

// The next tokens of a sequence; `logits`: of how many of them, counted from the end.
struct Chunk {
  int sequence = 0;
  std::span<const int32_t> tokens;
  int logits = 1;
};

// Rows of logits over the whole vocabulary, in the order of the chunks.
struct Logits {
  int64_t vocab = 0;
  std::vector<float> values;
  std::span<const float> row(size_t i) const {
    return std::span(values).subspan(i * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
  }
};

int32_t argmax(std::span<const float> logits);

class ModelRank {
 public:
  ModelRank(const WeightSource& source, const ParallelLayout& layout, RankLinks& links,
            const RunOptions& options);

  // Runs the chunks as one batch on all ranks (all call it with the same chunks). The answer is
  // the same on all ranks and stays until the next call.
  const Logits& step(std::span<const Chunk> chunks);
  // Forgets a sequence's tokens.
  void restart(int sequence) { positions_[static_cast<size_t>(sequence)] = 0; }

  Decoder& decoder() { return *decoder_; }

 private:
  void make_batch(std::span<const Chunk> chunks);

  const ParallelLayout& layout_;
  RankLinks& links_;
  RunOptions options_;
  StageEdge edge_;
  ThreadPool pool_{1};
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<ActivationFlow> flow_;
  std::unique_ptr<TensorSums> sums_;
  std::unique_ptr<Decoder> decoder_;
  KvGroups groups_;
  std::unique_ptr<KvCache> cache_;
  std::vector<std::vector<int32_t>> tables_;  // per sequence, one for all groups
  std::vector<int32_t> positions_;
  Logits logits_;
  // The batch of the current step.
  std::vector<int32_t> tokens_;
  std::vector<AttentionRow> rows_;
  std::vector<int32_t> logit_tokens_;
  std::vector<std::vector<const int32_t*>> batch_tables_;
};

// Calls body on every rank of the layout.
void run_model(const WeightSource& source, const RunOptions& options,
               const std::function<void(ModelRank& model, int rank)>& body);

}  // namespace trireme
