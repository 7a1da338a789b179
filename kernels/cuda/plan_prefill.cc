#include <algorithm>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/prefill_attention.cuh"

namespace trireme::cuda {

bool prefill_attention_supports(int head_dim, int block_size) {
  return head_dim >= 8 && head_dim <= 256 && head_dim % 8 == 0 && block_size > 0 &&
         block_size % 8 == 0;
}

void plan_prefill(std::span<const DeviceRow> rows, int /*head_dim*/,
                  std::vector<PrefillTile>& tiles) {
  tiles.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    for (int32_t begin = 0; begin < rows[i].count; begin += kPrefillTileRows) {
      tiles.push_back({.row = static_cast<int32_t>(i), .begin = begin});
    }
  }
  // A tile's work is the context its last query sees times nothing that differs between tiles:
  // a short tile costs as much as a full one.
  const auto context = [&](const PrefillTile& tile) {
    const DeviceRow& row = rows[static_cast<size_t>(tile.row)];
    return row.position + std::min(row.count, tile.begin + kPrefillTileRows);
  };
  std::stable_sort(tiles.begin(), tiles.end(), [&](const PrefillTile& a, const PrefillTile& b) {
    return context(a) > context(b);
  });
}

}  // namespace trireme::cuda
