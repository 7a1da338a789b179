// What the layers of a model, its embedding and its head take in a decode step: by this, pipeline
// stages get their layers.
#pragma once

#include "kernels/backend.h"
#include "parallel/layout.h"
#include "runtime/model/weight_source.h"

namespace trireme {

// About how many experts of a layer `rows` tokens choose between them, if each chooses at random.
double experts_read(const ExpertConfig& experts, double rows);

// In bytes of the backend's memory that could be read meanwhile, for a micro-batch of 16 rows at
// 512 tokens of context (docs/adr/0014). A matrix takes as long as its bytes or as its products,
// whichever is longer, and so does attention over its KV; activations and logits take their bytes.
StageCosts stage_costs(const WeightSource& source, const Backend& backend);

}  // namespace trireme
