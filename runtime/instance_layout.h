// The layout that all ranks of a start agree on.
#pragma once

#include <string>

#include "parallel/topology.h"

namespace trireme {

// Collective over `control`. `wanted`: as parse_layout, or empty: chosen by what joins the ranks.
// `shape` counts on rank 0 alone: ranks on different machines may cost their parts differently, and
// all must deal out the same layers. Throws kInvalidArgument on all ranks alike.
ParallelLayout agree_on_layout(Communicator& control, const std::string& wanted,
                               const ModelShape& shape, const Topology& topology);

}  // namespace trireme
