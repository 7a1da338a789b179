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
  int64_t expert = 0;   // which of
  int64_t experts = 0;  // so many; 0: not an expert's
};

std::vector<TensorShape> model_tensors(const ModelConfig& config);

// "layers.3.q.weight"
std::string layer_tensor(int layer, const char* name);
// "layers.3.experts.7.up.weight"
std::string expert_tensor(int layer, int expert, const char* name);

}  // namespace trireme
