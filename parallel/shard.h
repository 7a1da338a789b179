// How the tensor ranks of one stage cut its tensors.
#pragma once

#include <vector>

#include "parallel/layout.h"

namespace trireme {

// Throws kInvalidArgument naming the field if the model's numbers contradict each other.
void check_model_shape(const ModelShape& model);

// The most tensor ranks a stage of this model can have.
int max_tensor(const ModelShape& model);

// One shard per rank, 1 <= tensor <= max_tensor(model). Parts of a kind cover it exactly and in
// rank order; KV heads repeat where there are more ranks than KV heads.
std::vector<TensorShard> cut_stage(const ModelShape& model, int tensor);

}  // namespace trireme
