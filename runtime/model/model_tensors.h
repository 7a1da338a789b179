// The tensors that a configuration calls for, by canonical name and shape.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/model/config.h"

namespace trireme {

struct TensorShape {
  std::string name;
  int64_t rows = 0;  // 1 for vectors
  int64_t cols = 0;
  bool vector = false;
};

std::vector<TensorShape> model_tensors(const ModelConfig& config);

// "layers.3.q.weight"
std::string layer_tensor(int layer, const char* name);

}  // namespace trireme
