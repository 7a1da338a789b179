#include "kernels/backend.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace trireme {

Buffer Backend::upload(std::span<const float> values) {
  Buffer buffer = allocate(values.size_bytes());
  if (!values.empty()) std::memcpy(buffer.data(), values.data(), values.size_bytes());
  return buffer;
}

void Backend::copy(MatrixView from, MatrixView to) {
  const auto bytes = static_cast<size_t>(from.rows * from.cols) * size_of(from.dtype);
  if (bytes > 0) std::memcpy(to.data, from.data, bytes);
}

double Backend::measure(const std::function<void()>& work, int times) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  for (int round = 0; round < 3; ++round) {
    const auto begin = Clock::now();
    for (int i = 0; i < times; ++i) work();
    synchronize();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count() / times);
  }
  return best;
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
