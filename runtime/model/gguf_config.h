// A GGUF file's metadata as a ModelConfig.
#pragma once

#include "runtime/model/arch_table.h"
#include "runtime/model/config.h"
#include "runtime/model/gguf.h"

namespace trireme {

struct GgufConfig {
  const Architecture* architecture = nullptr;
  ModelConfig model;
};

// Throws kDataLoss (missing or absurd field, named) or kUnimplemented (architecture, rope type, …).
// `context`: tokens that it is to be served with; 0: the model's own.
GgufConfig parse_gguf_config(const GgufFile& file, int context = 0);

}  // namespace trireme
