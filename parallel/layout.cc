#include "parallel/layout.h"

#include <algorithm>

#include "base/error.h"
#include "parallel/shard.h"

namespace trireme {
namespace {

void append(std::string& sum, const std::string& term) {
  if (!sum.empty()) sum += '+';
  sum += term;
}

// The layers of each stage, those left open dealt so that the slowest stage is as fast as it can
// be: one at a time to the stage that is cheapest with one more. A stage's cost is its layers'
// parameters, and the head's on the last stage, over its tensor ranks.
std::vector<int> balance_layers(const LayoutSpec& spec, const ModelShape& model) {
  const double heads = 2.0 * model.head_dim * (model.q_heads + model.kv_heads);
  const double layer = heads + 3.0 * model.ffn;
  const size_t last = spec.stages.size() - 1;
  std::vector<int> layers;
  std::vector<size_t> open;
  int left = model.layers;
  for (size_t i = 0; i <= last; ++i) {
    const int fixed = spec.stages[i].layers;
    if (fixed == 0) open.push_back(i);
    layers.push_back(std::max(fixed, 1));
    left -= layers.back();
  }
  if (left < 0 || (left > 0 && open.empty())) {
    std::string wanted;
    for (const StageSpec& stage : spec.stages) {
      append(wanted, stage.layers ? std::to_string(stage.layers) : "?");
    }
    fail(ErrorCode::kInvalidArgument,
         "layout: stage layers {} do not make up the model's {} layers", wanted, model.layers);
  }
  const auto cost_with_one_more = [&](size_t i) {
    const double head = i == last ? static_cast<double>(model.vocab) : 0;
    return ((layers[i] + 1) * layer + head) / spec.stages[i].tensor;
  };
  for (; left > 0; --left) {
    const size_t cheapest = *std::min_element(open.begin(), open.end(), [&](size_t a, size_t b) {
      return cost_with_one_more(a) < cost_with_one_more(b);
    });
    ++layers[cheapest];
  }
  return layers;
}

}  // namespace

int LayoutSpec::world() const {
  int ranks = 0;
  for (const StageSpec& stage : stages) ranks += stage.tensor;
  return ranks;
}

int ParallelLayout::world() const {
  return stages.empty() ? 0 : stages.back().first_rank + stages.back().tensor;
}

int ParallelLayout::stage_of(int rank) const {
  for (size_t i = 0; i < stages.size(); ++i) {
    const Stage& stage = stages[i];
    if (rank >= stage.first_rank && rank < stage.first_rank + stage.tensor) {
      return static_cast<int>(i);
    }
  }
  fail(ErrorCode::kInvalidArgument, "layout: no rank {} in a world of {}", rank, world());
}

int ParallelLayout::tensor_rank_of(int rank) const { return rank - stage(rank).first_rank; }

const TensorShard& ParallelLayout::shard(int rank) const {
  return stage(rank).shards[static_cast<size_t>(tensor_rank_of(rank))];
}

std::string ParallelLayout::describe() const {
  std::string tensor, layers;
  bool even = true;
  for (const Stage& stage : stages) {
    even = even && stage.tensor == stages[0].tensor;
    append(tensor, std::to_string(stage.tensor));
    append(layers, std::to_string(stage.layers.count));
  }
  if (even && !stages.empty()) tensor = std::to_string(stages[0].tensor);
  return fmt::format("tensor={} x pipeline={} (layers {})", tensor, pipeline(), layers);
}

ParallelLayout make_layout(const LayoutSpec& spec, const ModelShape& model, int world) {
  check_model_shape(model);
  if (spec.stages.empty()) fail(ErrorCode::kInvalidArgument, "layout: no stages");
  for (const StageSpec& stage : spec.stages) {
    if (stage.tensor < 1) {
      fail(ErrorCode::kInvalidArgument, "layout: tensor is {}, not positive", stage.tensor);
    }
    if (stage.layers < 0) {
      fail(ErrorCode::kInvalidArgument, "layout: a stage of {} layers", stage.layers);
    }
  }
  if (spec.world() != world) {
    fail(ErrorCode::kInvalidArgument, "layout: it takes {} ranks, but {} {} started", spec.world(),
         world, world == 1 ? "was" : "were");
  }
  if (spec.stages.size() > static_cast<size_t>(model.layers)) {
    fail(ErrorCode::kInvalidArgument, "layout: pipeline={} is more than the model's {} layers",
         spec.stages.size(), model.layers);
  }
  const std::vector<int> layers = balance_layers(spec, model);
  ParallelLayout layout;
  int rank = 0, layer = 0;
  for (size_t i = 0; i < spec.stages.size(); ++i) {
    const int tensor = spec.stages[i].tensor;
    layout.stages.push_back({rank, tensor, {layer, layers[i]}, cut_stage(model, tensor)});
    rank += tensor;
    layer += layers[i];
  }
  return layout;
}

}  // namespace trireme
