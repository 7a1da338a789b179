#include "kernels/backend.h"

#include <cstring>

namespace trireme {

Buffer Backend::upload(std::span<const float> values) {
  Buffer buffer = allocate(values.size_bytes());
  if (!values.empty()) std::memcpy(buffer.data(), values.data(), values.size_bytes());
  return buffer;
}

int64_t Backend::weight_bytes(const WeightSlice& slice) const {
  return slice.rows * row_bytes(slice.format, slice.cols);
}

std::vector<Weight> Backend::make_weights(std::span<const WeightSlice> slices) {
  std::vector<Weight> weights;
  for (const WeightSlice& slice : slices) weights.push_back(make_weight(slice));
  return weights;
}

}  // namespace trireme
