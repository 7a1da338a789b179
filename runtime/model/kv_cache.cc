#include "runtime/model/kv_cache.h"

#include <algorithm>

#include "base/error.h"

namespace trireme {
namespace {

constexpr int64_t kAlignment = 256;

int64_t align(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// One layer's K (or V) of one block.
int64_t half_block_bytes(const ModelConfig& config, int kv_heads, DType dtype, int block_size) {
  return int64_t{kv_heads} * block_size * config.head_dim * static_cast<int64_t>(size_of(dtype));
}

}  // namespace

KvGroups kv_groups(const ModelConfig& config) {
  KvGroups groups;
  for (const LayerConfig& layer : config.layers) {
    auto at = std::find(groups.windows.begin(), groups.windows.end(), layer.window);
    if (at == groups.windows.end()) at = groups.windows.insert(at, layer.window);
    groups.layer_group.push_back(static_cast<int>(at - groups.windows.begin()));
  }
  return groups;
}

KvCache::KvCache(const ModelConfig& config, const KvGroups& groups, Part layers, int kv_heads,
                 DType dtype, int block_size, const std::vector<int32_t>& blocks, Backend& backend)
    : layers_(layers) {
  if (blocks.size() != groups.windows.size()) {
    fail(ErrorCode::kInternal, "kv cache: block counts for {} groups, but there are {}",
         blocks.size(), groups.windows.size());
  }
  const int64_t unit = half_block_bytes(config, kv_heads, dtype, block_size);
  std::vector<int64_t> half_bytes;
  int64_t total = 0;
  for (int64_t layer = layers.begin; layer < layers.end(); ++layer) {
    const int group = groups.layer_group[static_cast<size_t>(layer)];
    half_bytes.push_back(align(unit * blocks[static_cast<size_t>(group)]));
    total += 2 * half_bytes.back();
  }
  storage_ = backend.allocate(static_cast<size_t>(total));
  std::byte* next = storage_.data();
  for (const int64_t bytes : half_bytes) {
    KvLayerView view;
    view.k = next;
    view.v = next + bytes;
    view.dtype = dtype;
    view.kv_heads = kv_heads;
    view.head_dim = config.head_dim;
    view.block_size = block_size;
    view.blocks = blocks[static_cast<size_t>(
        groups.layer_group[views_.size() + static_cast<size_t>(layers.begin)])];
    views_.push_back(view);
    next += 2 * bytes;
  }
}

int64_t KvCache::block_bytes(const ModelConfig& config, const KvGroups& groups, int g, Part layers,
                             int kv_heads, DType dtype, int block_size) {
  const auto begin = groups.layer_group.begin() + layers.begin;
  const auto count = std::count(begin, begin + layers.count, g);
  return 2 * count * half_block_bytes(config, kv_heads, dtype, block_size);
}

}  // namespace trireme
