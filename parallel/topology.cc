#include "parallel/topology.h"

#include <algorithm>

#include "parallel/device_communicator.h"

namespace trireme {
namespace {

// Ranks [begin, end) of one node, cut where the next rank lacks the best link to one before it.
void cut_node(const Topology& topology, int begin, int end, std::vector<int>& sizes) {
  LinkKind best = LinkKind::kNetwork;
  for (int a = begin; a < end; ++a) {
    for (int b = a + 1; b < end; ++b) best = std::max(best, topology.link(a, b));
  }
  std::vector<int> runs;
  for (int at = begin; at < end;) {
    int next = at + 1;
    const auto joined = [&](int rank) {
      for (int member = at; member < rank; ++member) {
        if (std::min(topology.link(member, rank), topology.link(rank, member)) < best) return false;
      }
      return true;
    };
    while (next < end && joined(next)) ++next;
    runs.push_back(next - at);
    at = next;
  }
  const bool alone = std::find(runs.begin(), runs.end(), 1) != runs.end();
  if (alone) runs = {end - begin};
  sizes.insert(sizes.end(), runs.begin(), runs.end());
}

int end_of_node(const Topology& topology, int begin) {
  int end = begin + 1;
  while (end < topology.ranks() && topology.node[end] == topology.node[begin]) ++end;
  return end;
}

}  // namespace

const char* to_string(LinkKind kind) {
  switch (kind) {
    case LinkKind::kNetwork: return "network";
    case LinkKind::kHost: return "host memory";
    case LinkKind::kPcie: return "PCIe";
    case LinkKind::kNvlink: return "NVLink";
  }
  return "?";
}

std::string Topology::describe() const {
  std::string sizes;
  int nodes = 0;
  LinkKind best = LinkKind::kNetwork;
  for (int begin = 0; begin < ranks(); begin = end_of_node(*this, begin), ++nodes) {
    const int end = end_of_node(*this, begin);
    sizes += (sizes.empty() ? "" : "+");
    sizes += std::to_string(end - begin);
    for (int a = begin; a < end; ++a) {
      for (int b = a + 1; b < end; ++b) best = std::max(best, link(a, b));
    }
  }
  std::string text = std::to_string(nodes);
  text += nodes == 1 ? " node of " : " nodes of ";
  text += sizes;
  text += ranks() == 1 ? " rank" : " ranks";
  if (best <= LinkKind::kHost) return text;
  text += ", ";
  text += to_string(best);
  return text + " within";
}

Topology even_topology(int world, int per_node) {
  Topology topology;
  for (int rank = 0; rank < world; ++rank) topology.node.push_back(rank / per_node);
  for (const int a : topology.node) {
    for (const int b : topology.node) {
      topology.links.push_back(a == b ? LinkKind::kHost : LinkKind::kNetwork);
    }
  }
  return topology;
}

Topology find_topology(Communicator& control, int node, int device) {
  Topology topology;
  topology.node.resize(static_cast<size_t>(control.size()));
  control.all_gather(std::as_bytes(std::span(&node, 1)),
                     std::as_writable_bytes(std::span(topology.node)));
  std::vector<LinkKind> mine(topology.node.size(), LinkKind::kHost);
  if (device >= 0) mine = device_links(control, device);
  for (size_t rank = 0; rank < mine.size(); ++rank) {
    if (topology.node[rank] != node) mine[rank] = LinkKind::kNetwork;
  }
  topology.links.resize(mine.size() * mine.size());
  control.all_gather(std::as_bytes(std::span(mine)),
                     std::as_writable_bytes(std::span(topology.links)));
  return topology;
}

std::vector<int> islands(const Topology& topology) {
  std::vector<int> sizes;
  for (int begin = 0; begin < topology.ranks(); begin = end_of_node(topology, begin)) {
    cut_node(topology, begin, end_of_node(topology, begin), sizes);
  }
  return sizes;
}

}  // namespace trireme
