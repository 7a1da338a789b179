// Cosines and sines of one step's positions: every layer of a step asks for the same ones.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace trireme::cpu {

class RopeCache {
 public:
  // [positions.size()][rotary_dim], the cosines of a token's pairs, then their sines. The angle is
  // rounded to float32, as position * inv_freq[i]. Valid until the next call but one.
  const float* lookup(const RopeParams& rope, const std::vector<int32_t>& positions);

 private:
  struct Table {
    std::vector<float> inv_freq;
    float magnitude = 0.0f;
    std::vector<int32_t> positions;
    std::vector<float> values;
  };
  // Two, since some models alternate between two rotations.
  Table tables_[2];
  int latest_ = 0;
};

}  // namespace trireme::cpu
