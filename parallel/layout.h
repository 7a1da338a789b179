// Which rank does what: pipeline stages, their tensor ranks, and how a stage cuts its tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

// What the parts of a model take in a step, in one unit, whatever it is: for dealing layers out to
// stages.
struct StageCosts {
  std::vector<double> layers;  // one each; empty: by the parameters of a Llama layer
  double first = 0;            // what the first stage does besides: the embedding
  double last = 0;             // what the last one does: head and sampling
};

// What the layout must know of a model. Plain numbers, so that parallel/ needs no model header.
struct ModelShape {
  int layers = 0;
  int hidden = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;  // 0: every layer has experts instead
  int64_t vocab = 0;
  int64_t ffn_multiple = 1;  // feed-forward cuts fall on multiples of this (block formats)
  int experts = 0;           // of a layer that has any
  int experts_per_token = 0;
  int expert_ffn = 0;
  int64_t expert_ffn_multiple = 1;
  bool tied_embeddings = false;
  StageCosts costs{};
};

// What a user asks for. Ranks number the tensor ranks of stage 0 first, then stage 1, …
struct StageSpec {
  int tensor = 1;
  int layers = 0;  // 0: chosen, so that the slowest stage is as fast as it can be
};
struct LayoutSpec {
  std::vector<StageSpec> stages;
  int world() const;
};

// "tensor=2,pipeline=2", or the path of a TOML file:
//   tensor = 2            # or, for stages that differ:   [[stage]]
//   pipeline = 2          #                               tensor = 2
//   stage_layers = [16, 14]   # or "auto"                 layers = 16
// Unknown keys, zero or negative numbers and contradictions throw kInvalidArgument (naming the
// key).
LayoutSpec parse_layout(const std::string& text_or_path);

// A contiguous part [begin, begin + count).
struct Part {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t end() const { return begin + count; }
  bool operator==(const Part&) const = default;
};

// What one tensor rank of a stage holds.
//
// With tensor <= kv_heads whole KV-head groups are dealt out, unevenly if need be. With more tensor
// ranks than KV heads each KV head is replicated on several ranks and its query heads are split;
// a rank then has one KV head. Either way q_heads.count is a multiple of kv_heads.count. Feed-
// forward parts even out uneven heads. tensor > q_heads is refused.
struct TensorShard {
  Part q_heads;
  Part kv_heads;
  Part ffn;
  Part experts;
  Part expert_ffn;  // of each of them
  Part vocab;       // of embedding and head
  // The first of the ranks that share this rank's KV heads computes them for the account of
  // unique KV bytes; false on the replicas.
  bool kv_owner = true;
};

struct Stage {
  int first_rank = 0;
  int tensor = 1;
  Part layers;
  std::vector<TensorShard> shards;  // one per tensor rank
};

struct ParallelLayout {
  std::vector<Stage> stages;

  int world() const;
  int pipeline() const { return static_cast<int>(stages.size()); }
  int stage_of(int rank) const;
  int tensor_rank_of(int rank) const;
  const Stage& stage(int rank) const { return stages[static_cast<size_t>(stage_of(rank))]; }
  const TensorShard& shard(int rank) const;
  std::string describe() const;  // e.g. "tensor=2 x pipeline=2 (layers 15+15)"
};

// What each stage takes, over what the slowest one does.
std::vector<double> stage_shares(const ParallelLayout& layout, const ModelShape& model);

// Checks the spec against model and world; one clear kInvalidArgument per mistake. Layers left
// open are dealt out by the model's costs.
ParallelLayout make_layout(const LayoutSpec& spec, const ModelShape& model, int world);

}  // namespace trireme
