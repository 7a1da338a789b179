// config.json and generation_config.json of a Hugging Face directory, as transformers 4 and 5
// write them.
#pragma once

#include <optional>
#include <string>

#include "runtime/model/arch_table.h"
#include "runtime/model/config.h"
#include "runtime/model/json_file.h"
#include "runtime/model/quant_scheme.h"

namespace trireme {

struct HuggingFaceConfig {
  const Architecture* architecture = nullptr;
  std::optional<bool> tied_embeddings;   // empty: the file does not say
  std::optional<QuantScheme> quantized;  // how the files keep matrices that have no plain weight
  ModelConfig model;                     // tied_embeddings is set where the file says so
};

// `config`: config.json, read from `path`. `generation`: generation_config.json or null; its
// end-of-sequence ids win. Throws kDataLoss (missing or absurd field, named) or kUnimplemented
// (architecture, rope type, activation, … named). `context`: tokens that it is to be served with;
// 0: the model's own.
HuggingFaceConfig parse_hugging_face_config(const Json& config, const Json* generation,
                                            const std::string& path, int context = 0);

}  // namespace trireme
