// Where the ranks are and what joins them: for choosing a layout, and for people.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/layout.h"

namespace trireme {

// The best way from one rank's memory to another's, worst first. kHost: within a node, through host
// memory, or a way that this process cannot ask for (each rank sees its own GPU alone).
enum class LinkKind : uint8_t { kNetwork, kHost, kPcie, kNvlink };
const char* to_string(LinkKind kind);

struct Topology {
  std::vector<int> node;        // of each rank: equal for the ranks of a node
  std::vector<LinkKind> links;  // from rank a to rank b at a * ranks() + b

  int ranks() const { return static_cast<int>(node.size()); }
  LinkKind link(int a, int b) const {
    return links[static_cast<size_t>(a) * node.size() + static_cast<size_t>(b)];
  }
  std::string describe() const;  // e.g. "2 nodes of 4+4 ranks, NVLink within"
};

// `world` ranks, `per_node` on each node (the last one may have fewer), without GPUs.
Topology even_topology(int world, int per_node);

// Collective over `control`. `node`: any number that the ranks of a node alone have in common.
// `device`: the index of this rank's GPU, -1 where ranks have none.
Topology find_topology(Communicator& control, int node, int device);

// Consecutive ranks among which a tensor group may be cut, as sizes that make up the world: those
// of a node that the node's best kind of link joins, all with all. A node where that would leave a
// rank alone is one island.
std::vector<int> islands(const Topology& topology);

// A spec that fits the ranks and the model: tensor groups within islands, as large as the heads
// allow, and pipeline stages across them. Throws kInvalidArgument if none fits.
LayoutSpec choose_layout(const ModelShape& model, const Topology& topology);

}  // namespace trireme
