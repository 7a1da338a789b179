// The layout a world gets when its user names none.
#include <algorithm>

#include "base/error.h"
#include "parallel/layout.h"
#include "parallel/shard.h"

namespace trireme {
namespace {

LayoutSpec even_spec(int tensor, int pipeline) {
  return {std::vector<StageSpec>(static_cast<size_t>(pipeline), StageSpec{tensor, 0})};
}

}  // namespace

LayoutSpec choose_layout(const ModelShape& model, int world, int ranks_per_node) {
  check_model_shape(model);
  if (world < 1 || ranks_per_node < 1) {
    fail(ErrorCode::kInvalidArgument, "layout: a world of {} ranks, {} per node", world,
         ranks_per_node);
  }
  const int most = max_tensor(model);
  const int whole = std::min(most, model.kv_heads);  // without replicated KV heads
  const int node = std::min(ranks_per_node, world);
  const auto fits = [&](int tensor) {
    // Ranks number node by node: a group stays on its node if the node holds whole groups.
    return world % tensor == 0 && node % tensor == 0 && world / tensor <= model.layers;
  };
  for (int tensor = std::min(whole, node); tensor >= 1; --tensor) {
    if (fits(tensor)) return even_spec(tensor, world / tensor);
  }
  for (int tensor = whole + 1; tensor <= std::min(most, node); ++tensor) {
    if (fits(tensor)) return even_spec(tensor, world / tensor);
  }
  // No equal stages: as few stages as keep KV heads whole, or else as there can be.
  for (const int limit : {whole, most}) {
    const int stages = (world + limit - 1) / limit;
    if (stages > model.layers) continue;
    LayoutSpec spec = even_spec(world / stages, stages);
    for (int i = 0; i < world % stages; ++i) ++spec.stages[static_cast<size_t>(i)].tensor;
    return spec;
  }
  fail(ErrorCode::kInvalidArgument,
       "layout: no layout of {} ranks fits the model: at most {} layers x tensor={}", world,
       model.layers, most);
}

}  // namespace trireme
