#include "runtime/instance_needs.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "parallel/topology.h"
#include "runtime/instance_layout.h"
#include "runtime/model/activation_flow.h"
#include "runtime/model/decoder.h"

namespace trireme {
namespace {

// Without max_context a model is served if so many tokens fit; it is then limited to what does.
constexpr int32_t kLeastContext = 256;
// What a rank takes besides: message buffers, the backend's scratch, the process itself.
constexpr int64_t kProcessBytes = 32 << 20;
constexpr int64_t kMostBlocks = int64_t{1} << 30;
constexpr int kMostRanks = 64, kRanksPerHost = 8;

// Tokens of one sequence that a group keeps at most.
int64_t kept_tokens(int window, int32_t context, const SchedulerConfig& config) {
  return window == 0 ? context : std::min<int64_t>(context, int64_t{window} + config.max_chunk);
}

}  // namespace

MemoryNeeds memory_needs(const ServedModel& model, const ParallelLayout& layout, int rank) {
  const ModelConfig& config = model.source.config();
  const SchedulerConfig& scheduler = model.scheduler;
  const TensorShard& shard = layout.shard(rank);
  const int stage = layout.stage_of(rank), last = layout.pipeline() - 1;
  MemoryNeeds found;
  found.weights = weight_bytes(model.source, layout, rank, model.backend);
  found.scratch =
      kProcessBytes +
      Decoder::scratch_bytes(
          config, layout, rank, model.backend, scheduler.token_budget,
          std::min<int64_t>(scheduler.token_budget, model.backend.max_logit_rows())) +
      model.backend.workspace_bytes({static_cast<int>(shard.q_heads.count), config.head_dim,
                                     static_cast<int>(model.groups.windows.size()),
                                     stage == last ? shard.vocab.count : 0}) +
      ActivationFlow::bytes(model.backend, stage > 0, stage < last, scheduler.token_budget,
                            config.hidden);
  found.kv_memory = model.kv_memory;
  const int32_t least =
      model.max_context > 0 ? model.max_context : std::min(kLeastContext, config.max_context);
  const auto blocks_for = [&](int64_t tokens) {
    return (tokens + model.block_size - 1) / model.block_size;
  };
  for (size_t g = 0; g < model.groups.windows.size(); ++g) {
    const int window = model.groups.windows[g];
    found.block_bytes.push_back(KvCache::block_bytes(
        config, model.groups, static_cast<int>(g), layout.stage(rank).layers,
        static_cast<int>(shard.kv_heads.count), model.kv_dtype, model.block_size));
    const int64_t each = blocks_for(kept_tokens(window, scheduler.max_context, scheduler)) + 1;
    found.wanted_blocks.push_back(
        static_cast<int32_t>(std::min(kMostBlocks, each * slot_count(scheduler))));
    found.least_blocks.push_back(
        static_cast<int32_t>(blocks_for(kept_tokens(window, least, scheduler)) + 1));
  }
  return found;
}

std::string fitting_layout(const ServedModel& model, const ModelShape& shape,
                           const ParallelLayout& current, int64_t available) {
  for (int ranks = 1; ranks <= kMostRanks; ranks *= 2) {
    try {
      const ParallelLayout tried =
          make_layout(choose_layout(shape, even_topology(ranks, kRanksPerHost)), shape, ranks);
      if (tried.describe() == current.describe()) continue;
      int64_t most = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        most = std::max(most, required_bytes(memory_needs(model, tried, rank)));
      }
      if (most > available) continue;
      return fmt::format("{} rank{} with layout {} would fit", ranks, ranks == 1 ? "" : "s",
                         tried.describe());
    } catch (const Error&) {  // no layout for so many ranks
    }
  }
  return fmt::format("no layout of up to {} such GPUs would fit", kMostRanks);
}

}  // namespace trireme
