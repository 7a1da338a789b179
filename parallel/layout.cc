#include "parallel/layout.h"

#include <algorithm>

#include "base/error.h"
#include "parallel/balance.h"
#include "parallel/shard.h"

namespace trireme {
namespace {

void append(std::string& sum, const std::string& term) {
  if (!sum.empty()) sum += '+';
  sum += term;
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

std::vector<double> stage_shares(const ParallelLayout& layout, const ModelShape& model) {
  const StageCosts costs = costs_of(model);
  std::vector<double> shares;
  for (size_t i = 0; i < layout.stages.size(); ++i) {
    const Stage& stage = layout.stages[i];
    double cost = (i == 0 ? costs.first : 0) + (i + 1 == layout.stages.size() ? costs.last : 0);
    for (int64_t layer = stage.layers.begin; layer < stage.layers.end(); ++layer) {
      cost += costs.layers[static_cast<size_t>(layer)];
    }
    shares.push_back(cost / stage.tensor);
  }
  const double most = *std::max_element(shares.begin(), shares.end());
  for (double& share : shares) share = most > 0 ? share / most : 1.0;
  return shares;
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
  const std::vector<int> layers = balance_stages(spec, model);
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
