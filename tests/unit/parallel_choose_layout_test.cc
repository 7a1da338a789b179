// Which layout is taken where none was asked for.
#include <gtest/gtest.h>

#include <random>

#include "parallel/layout.h"
#include "parallel/topology.h"
#include "tests/unit/parallel_layout_models.h"

namespace trireme {
namespace {

TEST(ChooseLayout, PrefersTensorWithinANode) {
  const auto chosen = [](const ModelShape& model, int world, int per_node) {
    const LayoutSpec spec = choose_layout(model, even_topology(world, per_node));
    EXPECT_EQ(spec.world(), world);
    make_layout(spec, model, world);  // and it fits
    return std::pair(spec.stages[0].tensor, static_cast<int>(spec.stages.size()));
  };
  EXPECT_EQ(chosen(smollm2(), 1, 1), std::pair(1, 1));
  EXPECT_EQ(chosen(smollm2(), 2, 2), std::pair(2, 1));
  EXPECT_EQ(chosen(smollm2(), 3, 3), std::pair(3, 1));
  EXPECT_EQ(chosen(smollm2(), 4, 4), std::pair(2, 2));
  EXPECT_EQ(chosen(smollm2(), 6, 6), std::pair(3, 2));
  EXPECT_EQ(chosen(smollm2(), 7, 7), std::pair(1, 7));
  EXPECT_EQ(chosen(llama70b(), 8, 8), std::pair(8, 1));
  EXPECT_EQ(chosen(llama70b(), 16, 8), std::pair(8, 2));
  EXPECT_EQ(chosen(llama70b(), 16, 4), std::pair(4, 4));
  EXPECT_EQ(chosen(llama70b(), 2, 1), std::pair(1, 2));
}

std::vector<int> tensors_of(const LayoutSpec& spec) {
  std::vector<int> tensors;
  for (const StageSpec& stage : spec.stages) tensors.push_back(stage.tensor);
  return tensors;
}

// Nodes of these sizes, with links of `kind` within, but where `pairs` says otherwise.
Topology topology_of(const std::vector<int>& nodes, LinkKind kind) {
  Topology topology;
  for (size_t i = 0; i < nodes.size(); ++i) {
    topology.node.insert(topology.node.end(), static_cast<size_t>(nodes[i]), static_cast<int>(i));
  }
  for (const int a : topology.node) {
    for (const int b : topology.node) topology.links.push_back(a == b ? kind : LinkKind::kNetwork);
  }
  return topology;
}

TEST(ChooseLayout, GroupsStayInsideUnevenNodes) {
  const auto chosen = [](const std::vector<int>& nodes) {
    const Topology topology = topology_of(nodes, LinkKind::kHost);
    const LayoutSpec spec = choose_layout(llama70b(), topology);
    const ParallelLayout layout = make_layout(spec, llama70b(), topology.ranks());
    for (const Stage& stage : layout.stages) {
      for (int rank = stage.first_rank; rank < stage.first_rank + stage.tensor; ++rank) {
        EXPECT_EQ(topology.node[static_cast<size_t>(rank)],
                  topology.node[static_cast<size_t>(stage.first_rank)]);
      }
    }
    return tensors_of(spec);
  };
  EXPECT_EQ(chosen({4, 2}), (std::vector<int>{4, 2}));
  EXPECT_EQ(chosen({2, 4, 1}), (std::vector<int>{2, 4, 1}));
  EXPECT_EQ(chosen({1, 4, 1}), (std::vector<int>{1, 4, 1}));
  EXPECT_EQ(chosen({12, 8}), (std::vector<int>{6, 6, 8}));
}

TEST(ChooseLayout, FollowsTheBestLinksOfANode) {
  Topology topology = topology_of({4}, LinkKind::kPcie);
  EXPECT_EQ(islands(topology), (std::vector<int>{4}));
  const auto join = [&topology](int a, int b, LinkKind kind) {
    topology.links[static_cast<size_t>(4 * a + b)] = kind;
    topology.links[static_cast<size_t>(4 * b + a)] = kind;
  };
  join(0, 1, LinkKind::kNvlink);  // rank 2 and 3 would be alone
  EXPECT_EQ(islands(topology), (std::vector<int>{4}));
  join(2, 3, LinkKind::kNvlink);
  EXPECT_EQ(islands(topology), (std::vector<int>{2, 2}));
  EXPECT_EQ(tensors_of(choose_layout(llama70b(), topology)), (std::vector<int>{2, 2}));
  EXPECT_EQ(topology.describe(), "1 node of 4 ranks, NVLink within");
  for (int a = 0; a < 4; ++a) {
    for (int b = a + 1; b < 4; ++b) join(a, b, LinkKind::kNvlink);
  }
  EXPECT_EQ(islands(topology), (std::vector<int>{4}));
  EXPECT_EQ(topology_of({2, 1}, LinkKind::kHost).describe(), "2 nodes of 2+1 ranks");
  EXPECT_EQ(even_topology(1, 8).describe(), "1 node of 1 rank");
}

TEST(ChooseLayout, AlwaysFitsOrRefuses) {
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    const auto pick = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    ModelShape model = smollm2();
    model.layers = pick(1, 12);
    model.kv_heads = pick(1, 6);
    model.q_heads = model.kv_heads * pick(1, 5);
    const int world = pick(1, 80), per_node = pick(1, 16);
    if (world > model.layers * std::min(model.q_heads, 48)) {
      refusal([&] { choose_layout(model, even_topology(world, per_node)); });
    } else {
      const LayoutSpec spec = choose_layout(model, even_topology(world, per_node));
      ASSERT_EQ(spec.world(), world);
      ASSERT_NO_THROW(make_layout(spec, model, world)) << "round " << round;
    }
  }
}

}  // namespace
}  // namespace trireme
