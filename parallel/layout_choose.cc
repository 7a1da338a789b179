// The layout a world gets when its user names none.
#include <algorithm>

#include "base/error.h"
#include "parallel/shard.h"
#include "parallel/topology.h"

namespace trireme {
namespace {

int largest_divisor(int number, int limit) {
  for (int divisor = std::min(number, limit); divisor > 1; --divisor) {
    if (number % divisor == 0) return divisor;
  }
  return 1;
}

// Every island in equal stages of at most `limit` tensor ranks.
LayoutSpec equal_stages(const std::vector<int>& sizes, int limit) {
  LayoutSpec spec;
  for (const int size : sizes) {
    const int tensor = largest_divisor(size, limit);
    spec.stages.insert(spec.stages.end(), static_cast<size_t>(size / tensor), StageSpec{tensor, 0});
  }
  return spec;
}

// Every island in as few stages as that allows.
LayoutSpec few_stages(const std::vector<int>& sizes, int limit) {
  LayoutSpec spec;
  for (const int size : sizes) {
    const int stages = (size + limit - 1) / limit;
    for (int i = 0; i < stages; ++i) {
      spec.stages.push_back({size / stages + (i < size % stages ? 1 : 0), 0});
    }
  }
  return spec;
}

}  // namespace

LayoutSpec choose_layout(const ModelShape& model, const Topology& topology) {
  check_model_shape(model);
  const int world = topology.ranks();
  if (world < 1) fail(ErrorCode::kInvalidArgument, "layout: a world of {} ranks", world);
  const std::vector<int> sizes = islands(topology);
  const int most = max_tensor(model);
  const int whole = std::min(most, model.kv_heads);  // without replicated KV heads
  const auto fits = [&](const LayoutSpec& spec) {
    return spec.stages.size() <= static_cast<size_t>(model.layers);
  };
  for (int limit = whole; limit <= most; ++limit) {
    LayoutSpec spec = equal_stages(sizes, limit);
    if (fits(spec)) return spec;
  }
  for (const int limit : {whole, most}) {
    LayoutSpec spec = few_stages(sizes, limit);
    if (fits(spec)) return spec;
  }
  // More islands than layers: groups must reach across.
  for (const int limit : {whole, most}) {
    LayoutSpec spec = few_stages({world}, limit);
    if (fits(spec)) return spec;
  }
  fail(ErrorCode::kInvalidArgument,
       "layout: no layout of {} ranks fits the model: at most {} layers x tensor={}", world,
       model.layers, most);
}

}  // namespace trireme
