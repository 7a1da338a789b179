// How heads rotate, as a Hugging Face configuration says it.
#pragma once

#include <cstdint>

#include "runtime/model/config.h"
#include "runtime/model/json_file.h"

namespace trireme {

// How a model's heads rotate where its rope fields do not say.
struct RopeDefaults {
  double theta = 10000.0;
  double partial = 1.0;  // of a head
  bool may_be_partial = false;
  bool may_be_long = false;
  int64_t original_context = 0;  // of longrope; 0: unknown
  int64_t longest_context = 0;
  int64_t served_context = 0;
};

// `fields`: rope_parameters of transformers 5, or rope_scaling of 4 with theta from elsewhere.
// Throws kDataLoss or kUnimplemented, naming the field or the rope type.
RopeConfig parse_rope(const JsonFields& fields, const RopeDefaults& defaults, int head_dim);

}  // namespace trireme
