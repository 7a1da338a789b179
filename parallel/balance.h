// How many layers each pipeline stage gets.
#pragma once

#include <vector>

#include "parallel/layout.h"

namespace trireme {

// The model's costs; where it brings none, those of its parameters: a layer's, and the head's.
StageCosts costs_of(const ModelShape& model);

// Layers per stage, one at least; those that the spec gives stay. The others are dealt so that the
// slowest stage (its cost over its tensor ranks) is as fast as it can be and, among such splits,
// the others are as even as they can be. Throws kInvalidArgument if the spec's layers are not the
// model's.
std::vector<int> balance_stages(const LayoutSpec& spec, const ModelShape& model);

}  // namespace trireme
