// Which rank holds what: the cuts, their invariants over random models, and every refusal.
#include "parallel/layout.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "parallel/balance.h"
#include "parallel/shard.h"
#include "tests/unit/parallel_layout_models.h"

namespace trireme {
namespace {

std::vector<TensorShard> shards_of(const ModelShape& model, int tensor) {
  return make_layout(even(tensor, 1), model, tensor).stages[0].shards;
}

// The parts follow each other without gap or overlap, none is empty.
void expect_exact_cover(const std::vector<TensorShard>& shards, Part TensorShard::*part,
                        int64_t count) {
  int64_t at = 0;
  for (const TensorShard& shard : shards) {
    EXPECT_EQ((shard.*part).begin, at);
    EXPECT_GE((shard.*part).count, 1);
    at = (shard.*part).end();
  }
  EXPECT_EQ(at, count);
}

void expect_valid_shards(const ModelShape& model, const std::vector<TensorShard>& shards) {
  expect_exact_cover(shards, &TensorShard::q_heads, model.q_heads);
  expect_exact_cover(shards, &TensorShard::ffn, model.ffn);
  expect_exact_cover(shards, &TensorShard::vocab, model.vocab);
  const int64_t group = model.q_heads / model.kv_heads;
  int64_t owned = 0;
  for (const TensorShard& shard : shards) {
    const Part q = shard.q_heads, kv = shard.kv_heads;
    EXPECT_GE(kv.count, 1);
    EXPECT_EQ(q.count % kv.count, 0);
    // Every query head finds its own KV head on the rank.
    EXPECT_EQ(q.begin / group, kv.begin);
    EXPECT_EQ((q.end() - 1) / group, kv.end() - 1);
    EXPECT_EQ(shard.ffn.begin % model.ffn_multiple, 0);
    EXPECT_EQ(shard.ffn.count % model.ffn_multiple, 0);
    if (shard.kv_owner) {
      EXPECT_EQ(kv.begin, owned);
      owned = kv.end();
    } else {
      EXPECT_EQ(kv, (Part{owned - 1, 1}));
    }
  }
  EXPECT_EQ(owned, model.kv_heads);
}

TEST(TensorShards, SmolLM2OverTwoRanks) {
  const auto shards = shards_of(smollm2(), 2);
  EXPECT_EQ(shards[0].kv_heads, (Part{0, 2}));
  EXPECT_EQ(shards[1].kv_heads, (Part{2, 1}));
  EXPECT_EQ(shards[0].q_heads, (Part{0, 6}));
  EXPECT_EQ(shards[1].q_heads, (Part{6, 3}));
  // Rank 0 has twice the heads, so less of the feed-forward: 64 * 16 vs 64 * 8 rows of attention
  // against 3 * 32 per unit, which 24 -+ 2.7 units even out.
  EXPECT_EQ(shards[0].ffn.count + shards[1].ffn.count, 1536);
  const auto cost = [](const TensorShard& shard) {
    return 128 * (shard.q_heads.count + shard.kv_heads.count) + 3 * shard.ffn.count;
  };
  EXPECT_LE(std::abs(cost(shards[0]) - cost(shards[1])), 3 * 32);
}

TEST(TensorShards, SmolLM2WithReplicatedKvHeads) {
  const auto shards = shards_of(smollm2(), 4);
  EXPECT_EQ(shards[0].q_heads, (Part{0, 2}));
  EXPECT_EQ(shards[1].q_heads, (Part{2, 1}));
  EXPECT_EQ(shards[2].q_heads, (Part{3, 3}));
  EXPECT_TRUE(shards[0].kv_owner);
  EXPECT_FALSE(shards[1].kv_owner);
  EXPECT_EQ(shards[1].kv_heads, shards[0].kv_heads);
}

TEST(TensorShards, EveryDegreeOfKnownModels) {
  for (int tensor = 1; tensor <= 9; ++tensor) {
    expect_valid_shards(smollm2(), shards_of(smollm2(), tensor));
  }
  for (int tensor = 1; tensor <= 64; ++tensor) {
    expect_valid_shards(llama70b(), shards_of(llama70b(), tensor));
  }
  const ModelShape llama8b{.layers = 32,
                           .hidden = 4096,
                           .q_heads = 32,
                           .kv_heads = 8,
                           .head_dim = 128,
                           .ffn = 14336,
                           .vocab = 128256,
                           .ffn_multiple = 32};
  for (const TensorShard& shard : shards_of(llama8b, 16)) EXPECT_EQ(shard.q_heads.count, 2);
}

// Of every expert all of its feed-forward is on one rank or another, once.
void expect_expert_cover(const ModelShape& model, const std::vector<TensorShard>& shards) {
  std::vector<int64_t> covered(static_cast<size_t>(model.experts), 0);
  for (const TensorShard& shard : shards) {
    EXPECT_GE(shard.experts.count, 1);
    EXPECT_GE(shard.expert_ffn.count, 1);
    EXPECT_EQ(shard.expert_ffn.begin % model.expert_ffn_multiple, 0);
    for (int64_t e = shard.experts.begin; e < shard.experts.end(); ++e) {
      EXPECT_EQ(shard.expert_ffn.begin, covered[static_cast<size_t>(e)]);
      covered[static_cast<size_t>(e)] = shard.expert_ffn.end();
    }
  }
  for (const int64_t end : covered) EXPECT_EQ(end, model.expert_ffn);
}

TEST(TensorShards, ExpertsWholeOrInParts) {
  ModelShape model = smollm2();
  model.ffn = 0;  // every layer has experts
  model.q_heads = model.kv_heads = 24;
  model.experts_per_token = 2;
  for (const int experts : {1, 2, 3, 8, 60}) {
    for (const int multiple : {1, 32}) {
      model.experts = experts;
      model.expert_ffn = 96;
      model.expert_ffn_multiple = multiple;
      const int most = std::min(24, experts * 96 / multiple);
      EXPECT_EQ(max_tensor(model), most);
      for (int tensor = 1; tensor <= most; ++tensor) {
        const auto shards = shards_of(model, tensor);
        expect_expert_cover(model, shards);
        for (const TensorShard& shard : shards) {
          EXPECT_EQ(shard.ffn.count, 0);
          if (tensor <= experts) {
            EXPECT_EQ(shard.expert_ffn, (Part{0, 96}));
          }
        }
      }
      if (most == 24) continue;
      const std::string message = refusal([&] { shards_of(model, most + 1); });
      EXPECT_NE(message.find("blocks of experts"), std::string::npos) << message;
    }
  }
  model.expert_ffn = 100;
  EXPECT_NE(refusal([&] { shards_of(model, 1); }).find("no multiple of 32"), std::string::npos);
  // Three experts over four ranks: the first has two.
  model.experts = 3;
  model.expert_ffn = 96;
  const auto shards = shards_of(model, 4);
  EXPECT_EQ(shards[0].experts, (Part{0, 1}));
  EXPECT_EQ(shards[1].experts, (Part{0, 1}));
  EXPECT_EQ(shards[1].expert_ffn, (Part{64, 32}));
  EXPECT_EQ(shards[2].experts, (Part{1, 1}));
}

// Where a model brings no costs: experts count as often as a token goes to them.
TEST(Stages, ExpertsCostWhatATokenMultiplies) {
  ModelShape dense = smollm2(), sparse = smollm2();
  dense.ffn = 2 * 96;
  sparse.ffn = 0;
  sparse.experts = 60;
  sparse.experts_per_token = 2;
  sparse.expert_ffn = 96;
  EXPECT_EQ(costs_of(sparse).layers, costs_of(dense).layers);
}

TEST(TensorShards, TinyVocabularies) {
  ModelShape model = smollm2();
  for (const int64_t vocab : {9, 10, 63, 64, 65, 515, 1000}) {
    model.vocab = vocab;
    for (int tensor = 1; tensor <= 9; ++tensor) {
      expect_valid_shards(model, shards_of(model, tensor));
    }
  }
  model.vocab = 3;
  EXPECT_NE(refusal([&] { shards_of(model, 4); }).find("3 vocabulary"), std::string::npos);
}

TEST(TensorShards, EvenModelsAreCutEvenly) {
  for (const TensorShard& shard : shards_of(llama70b(), 8)) {
    EXPECT_EQ(shard.q_heads.count, 8);
    EXPECT_EQ(shard.kv_heads.count, 1);
    EXPECT_EQ(shard.ffn.count, 28672 / 8);
    EXPECT_NEAR(static_cast<double>(shard.vocab.count), 128256.0 / 8, 64);
  }
}

TEST(TensorShards, RandomModels) {
  std::mt19937 random(1);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int round = 0; round < 3000; ++round) {
    ModelShape model;
    model.layers = pick(1, 40);
    model.hidden = pick(1, 512) * 8;
    model.kv_heads = pick(1, 12);
    model.q_heads = model.kv_heads * pick(1, 8);
    model.head_dim = pick(1, 16) * 16;
    model.ffn_multiple = 1 << pick(0, 8);
    model.ffn = pick(1, 300) * static_cast<int>(model.ffn_multiple);
    model.vocab = pick(1, 3) == 1 ? pick(1, 600) : pick(1000, 200'000);
    const int tensor = pick(1, model.q_heads);
    if (model.ffn / model.ffn_multiple < tensor || model.vocab < tensor) {
      refusal([&] { shards_of(model, tensor); });
    } else {
      expect_valid_shards(model, shards_of(model, tensor));
    }
    if (HasFailure()) FAIL() << "round " << round;
  }
}

// The costliest rank could not be relieved by one unit of feed-forward.
TEST(TensorShards, FeedForwardEvensOutHeads) {
  const ModelShape model = smollm2();
  for (int tensor = 2; tensor <= 9; ++tensor) {
    const auto shards = shards_of(model, tensor);
    int64_t most = 0, least = INT64_MAX;
    for (const TensorShard& shard : shards) {
      const int64_t cost = 128 * (shard.q_heads.count + shard.kv_heads.count) + 3 * shard.ffn.count;
      most = std::max(most, cost);
      least = std::min(least, cost);
    }
    EXPECT_LE(most - least, 3 * model.ffn_multiple) << tensor;
  }
}

TEST(Layout, NumbersRanksStageByStage) {
  const ParallelLayout layout = make_layout({{{2, 10}, {1, 8}, {3, 12}}}, smollm2(), 6);
  EXPECT_EQ(layout.world(), 6);
  EXPECT_EQ(layout.pipeline(), 3);
  const int stages[] = {0, 0, 1, 2, 2, 2}, tensor_ranks[] = {0, 1, 0, 0, 1, 2};
  for (int rank = 0; rank < 6; ++rank) {
    EXPECT_EQ(layout.stage_of(rank), stages[rank]);
    EXPECT_EQ(layout.tensor_rank_of(rank), tensor_ranks[rank]);
  }
  EXPECT_EQ(layout.stages[1].layers, (Part{10, 8}));
  EXPECT_EQ(layout.stages[2].layers, (Part{18, 12}));
  EXPECT_EQ(layout.describe(), "tensor=2+1+3 x pipeline=3 (layers 10+8+12)");
  EXPECT_EQ(make_layout(even(2, 2), llama70b(), 4).describe(),
            "tensor=2 x pipeline=2 (layers 41+39)");
  refusal([&] { layout.stage_of(6); });
  refusal([&] { layout.stage_of(-1); });
}

// SmolLM2's head weighs as much as eight layers.
TEST(Layout, TheHeadCountsOnTheLastStage) {
  const ParallelLayout layout = make_layout(even(2, 2), smollm2(), 4);
  EXPECT_EQ(layout.stages[0].layers.count, 19);
  EXPECT_EQ(layout.stages[1].layers.count, 11);
}

TEST(Layout, StagesWithMoreRanksTakeMoreLayers) {
  ModelShape model = llama70b();
  model.vocab = 64;
  const ParallelLayout layout = make_layout({{{1, 0}, {3, 0}}}, model, 4);
  EXPECT_EQ(layout.stages[0].layers.count, 20);
  EXPECT_EQ(layout.stages[1].layers.count, 60);
  const ParallelLayout fixed = make_layout({{{1, 0}, {1, 50}, {1, 0}}}, model, 3);
  EXPECT_EQ(fixed.stages[0].layers.count, 15);
  EXPECT_EQ(fixed.stages[2].layers.count, 15);
}

TEST(Layout, CostsOfTheirOwnDecide) {
  ModelShape model = smollm2();
  model.layers = 8;
  model.costs.layers = {1, 1, 1, 1, 4, 4, 1, 1};
  model.costs.first = 1;
  model.costs.last = 3;
  const auto layers = [&](int stages) {
    std::vector<int64_t> counts;
    for (const Stage& stage : make_layout(even(1, stages), model, stages).stages) {
      counts.push_back(stage.layers.count);
    }
    return counts;
  };
  EXPECT_EQ(layers(1), (std::vector<int64_t>{8}));
  EXPECT_EQ(layers(2), (std::vector<int64_t>{5, 3}));        // 9 + 9
  EXPECT_EQ(layers(3), (std::vector<int64_t>{4, 2, 2}));     // 5 + 8 + 5
  EXPECT_EQ(layers(4), (std::vector<int64_t>{3, 2, 1, 2}));  // 4 + 5 + 4 + 5
  const ParallelLayout split = make_layout(even(1, 3), model, 3);
  const std::vector<double> shares = stage_shares(split, model);
  EXPECT_EQ(shares, (std::vector<double>{5.0 / 8, 1.0, 5.0 / 8}));
}

// Against every split there is.
TEST(Layout, NoSplitHasAFasterSlowestStage) {
  std::mt19937 random(5);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int round = 0; round < 500; ++round) {
    ModelShape model = smollm2();
    model.layers = pick(1, 9);
    for (int i = 0; i < model.layers; ++i) model.costs.layers.push_back(pick(1, 20));
    model.costs.first = pick(0, 10);
    model.costs.last = pick(0, 40);
    LayoutSpec spec;
    for (int stages = pick(1, std::min(model.layers, 4)); stages > 0; --stages) {
      spec.stages.push_back({pick(1, 3), 0});
    }
    const auto slowest = [&](const std::vector<int>& counts) {
      double most = 0;
      size_t layer = 0;
      for (size_t i = 0; i < counts.size(); ++i) {
        double cost =
            (i == 0 ? model.costs.first : 0) + (i + 1 == counts.size() ? model.costs.last : 0);
        for (int n = counts[i]; n > 0; --n) cost += model.costs.layers[layer++];
        most = std::max(most, cost / spec.stages[i].tensor);
      }
      return most;
    };
    double best = 1e30;
    std::vector<int> counts(spec.stages.size(), 1);
    const std::function<void(size_t, int)> try_all = [&](size_t stage, int left) {
      if (stage + 1 == counts.size()) {
        counts[stage] = left;
        best = std::min(best, slowest(counts));
        return;
      }
      for (int n = 1; n + static_cast<int>(counts.size() - stage) - 1 <= left; ++n) {
        counts[stage] = n;
        try_all(stage + 1, left - n);
      }
    };
    try_all(0, model.layers);
    std::vector<int> chosen;
    for (const Stage& stage : make_layout(spec, model, spec.world()).stages) {
      chosen.push_back(static_cast<int>(stage.layers.count));
    }
    ASSERT_NEAR(slowest(chosen), best, 1e-9) << "round " << round;
  }
}

TEST(Layout, RandomSpecsCoverAllLayers) {
  std::mt19937 random(2);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int round = 0; round < 2000; ++round) {
    ModelShape model = smollm2();
    model.layers = pick(1, 60);
    LayoutSpec spec;
    int left = model.layers;
    for (int stages = pick(1, std::min(model.layers, 8)); stages > 0; --stages) {
      const bool open = stages == 1 || pick(0, 1) == 0;
      spec.stages.push_back({pick(1, 9), open ? 0 : pick(1, left - (stages - 1))});
      left -= open ? 1 : spec.stages.back().layers;
    }
    const ParallelLayout layout = make_layout(spec, model, spec.world());
    int64_t layer = 0;
    for (size_t i = 0; i < layout.stages.size(); ++i) {
      EXPECT_EQ(layout.stages[i].layers.begin, layer);
      EXPECT_GE(layout.stages[i].layers.count, 1);
      if (spec.stages[i].layers > 0) {
        EXPECT_EQ(layout.stages[i].layers.count, spec.stages[i].layers);
      }
      layer = layout.stages[i].layers.end();
    }
    ASSERT_EQ(layer, model.layers) << round;
  }
}

TEST(Layout, RefusesWithOneClearMessage) {
  const auto says = [](const LayoutSpec& spec, const ModelShape& model, int world,
                       const std::string& text) {
    const std::string message = refusal([&] { make_layout(spec, model, world); });
    EXPECT_NE(message.find(text), std::string::npos) << message;
  };
  says(even(2, 2), smollm2(), 3, "takes 4 ranks, but 3 were started");
  says(even(2, 2), smollm2(), 1, "but 1 was started");
  says(even(10, 1), smollm2(), 10, "tensor=10 is more than the model's 9 query heads");
  says(even(1, 31), smollm2(), 31, "pipeline=31 is more than the model's 30 layers");
  says({{{1, 16}, {1, 15}}}, smollm2(), 2, "16+15 do not make up the model's 30 layers");
  says({{{1, 16}, {1, 13}}}, smollm2(), 2, "16+13 do not make up");
  says({{{1, 30}, {1, 0}}}, smollm2(), 2, "30+? do not make up");
  says({}, smollm2(), 0, "no stages");
  says({{{0, 0}}}, smollm2(), 0, "tensor is 0");
  says({{{1, -1}}}, smollm2(), 1, "-1 layers");
  ModelShape model = smollm2();
  model.q_heads = 10;
  says(even(1, 1), model, 1, "10 query heads are no multiple of 3 KV heads");
  model = smollm2();
  model.ffn = 1537;
  says(even(1, 1), model, 1, "1537 is no multiple of 32");
  model = smollm2();
  model.ffn_multiple = 512;
  says(even(4, 1), model, 4, "tensor=4 is more than the model's 3 feed-forward blocks");
  model = smollm2();
  model.kv_heads = 0;
  says(even(1, 1), model, 1, "kv_heads is 0");
  model.kv_heads = 3;
  model.layers = -2;
  says(even(1, 1), model, 1, "layers is -2");
}

}  // namespace
}  // namespace trireme
