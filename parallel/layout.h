// Which rank does what: pipeline stages, their tensor ranks, and how a stage cuts its tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

// What the layout must know of a model. Plain numbers, so that parallel/ needs no model header.
struct ModelShape {
  int layers = 0;
  int hidden = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;
  int64_t vocab = 0;
  int64_t ffn_multiple = 1;  // feed-forward cuts fall on multiples of this (block formats)
  bool tied_embeddings = false;
};

// What a user asks for. Ranks number the tensor ranks of stage 0 first, then stage 1, …
struct StageSpec {
  int tensor = 1;
  int layers = 0;  // 0: chosen by the balance rule
};
struct LayoutSpec {
  std::vector<StageSpec> stages;
  int world() const;
};

// "tensor=2,pipeline=2", or the path of a TOML file:
//   tensor = 2            # or, for stages that differ:   [[stage]]
//   pipeline = 2          #                               tensor = 2
//   stage_layers = [16, 14]                               layers = 16
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
  Part vocab;  // of embedding and head
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

// Checks the spec against model and world; one clear kInvalidArgument per mistake. Layers left
// open are balanced with the cost of the head counted on the last stage.
ParallelLayout make_layout(const LayoutSpec& spec, const ModelShape& model, int world);

// A spec that fits `world` ranks and the model: tensor within a node (ranks_per_node) as far as
// the heads allow, pipeline across the rest. Throws kInvalidArgument if none fits.
LayoutSpec choose_layout(const ModelShape& model, int world, int ranks_per_node);

}  // namespace trireme
