#include "kernels/cpu/rope_cache.h"

#include <algorithm>
#include <cmath>

namespace trireme::cpu {

const float* RopeCache::lookup(const RopeParams& rope, const std::vector<int32_t>& positions) {
  const auto half = static_cast<size_t>(rope.rotary_dim / 2);
  for (int i = 0; i < 2; ++i) {
    const Table& table = tables_[i];
    if (table.magnitude == rope.magnitude && table.positions == positions &&
        std::equal(table.inv_freq.begin(), table.inv_freq.end(), rope.inv_freq,
                   rope.inv_freq + half)) {
      latest_ = i;
      return table.values.data();
    }
  }
  latest_ = 1 - latest_;
  Table& table = tables_[latest_];
  table.inv_freq.assign(rope.inv_freq, rope.inv_freq + half);
  table.magnitude = rope.magnitude;
  table.positions = positions;
  table.values.resize(positions.size() * half * 2);
  float* out = table.values.data();
  for (const int32_t position : positions) {
    for (size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * rope.inv_freq[i];
      out[i] = std::cos(angle) * rope.magnitude;
      out[half + i] = std::sin(angle) * rope.magnitude;
    }
    out += 2 * half;
  }
  return table.values.data();
}

}  // namespace trireme::cpu
