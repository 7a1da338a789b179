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
GgufConfig parse_gguf_config(const GgufFile& file);

}  // namespace trireme
