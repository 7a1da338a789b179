// The bytes of the paged KV cache on one rank: for each of its layers K and V apart, each
// [block][kv_head][token][dim].
#pragma once

#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "kernels/backend.h"
#include "parallel/layout.h"
#include "runtime/model/config.h"

namespace trireme {

// Layers of equal window form a KV group; group g's blocks are numbered from 0 on every rank.
struct KvGroups {
  std::vector<int> windows;      // per group; 0 = all positions
  std::vector<int> layer_group;  // layer -> group
};
KvGroups kv_groups(const ModelConfig& config);

class KvCache {
 public:
  // Memory of the backend for `blocks[g]` blocks of each group on this rank's layers and KV heads.
  KvCache(const ModelConfig& config, const KvGroups& groups, Part layers, int kv_heads, DType dtype,
          int block_size, const std::vector<int32_t>& blocks, Backend& backend);

  // `layer` is global and must be one of this rank's.
  const KvLayerView& layer(int layer) const {
    return views_[static_cast<size_t>(layer - layers_.begin)];
  }
  int64_t bytes() const { return static_cast<int64_t>(storage_.size()); }

  // Bytes that one block of group `g` takes on a rank with these layers and heads.
  static int64_t block_bytes(const ModelConfig& config, const KvGroups& groups, int g, Part layers,
                             int kv_heads, DType dtype, int block_size);

 private:
  Part layers_;
  Buffer storage_;
  std::vector<KvLayerView> views_;
};

}  // namespace trireme
