// The real SmolLM2-135M-Instruct (Q4_1): 64 greedy tokens on 20 prompts against a float32 reference
// run (tests/support/smollm2.h).
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "tests/support/model_runner.h"
#include "tests/support/smollm2.h"

namespace trireme {
namespace {

// The reference has float32 activations; the kernels multiply quantized weights with activations
// of limited precision. Tokens are compared where the reference's best logit leads by more.
constexpr float kMarginTolerance = 0.03f;
constexpr float kLogitTolerance = 0.02f;  // on the reference's five best logits; measured: 0.011

// A free run may leave the reference where the margin allows it, and is not compared from there on.
// Measured: none does, on either layout (640 of 640). The slack is one run's 64 tokens, for another
// instruction set's rounding.
constexpr int kFollowed = 576;

struct Layout {
  const char* name;
  int tensor;
  int pipeline;
};

void PrintTo(const Layout& layout, std::ostream* out) { *out << layout.name; }

class SmolLm2 : public testing::TestWithParam<Layout> {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(smollm2_path())) {
      GTEST_SKIP() << "SmolLM2 is not here: run launch/fetch_model, or set TRIREME_SMOLLM2";
    }
    source_ = open_model(smollm2_path());
    prompts_ = smollm2_prompts();
    ASSERT_EQ(prompts_.size(), 20u);
    options_.layout.stages.assign(static_cast<size_t>(GetParam().pipeline), {GetParam().tensor, 0});
    options_.isa = best_cpu_isa();
    options_.max_context = 704;
    options_.max_tokens = 704;
  }

  std::unique_ptr<WeightSource> source_;
  std::vector<SmolLm2Prompt> prompts_;
  RunOptions options_;
};

// Each prompt with the reference's tokens, in one batch: the choice at every step.
TEST_P(SmolLm2, ChoosesTheReferencesTokens) {
  float worst = 0.0f;
  int compared = 0, differing = 0;
  run_model(*source_, options_, [&](ModelRank& model, int rank) {
    for (const SmolLm2Prompt& prompt : prompts_) {
      std::vector<int32_t> tokens = prompt.ids;
      tokens.insert(tokens.end(), prompt.greedy.begin(), prompt.greedy.end() - 1);
      model.restart(0);
      const Chunk chunk{0, tokens, static_cast<int>(prompt.greedy.size())};
      const Logits& logits = model.step({&chunk, 1});
      if (rank != 0) continue;
      for (size_t i = 0; i < prompt.greedy.size(); ++i) {
        const auto row = logits.row(i);
        for (size_t k = 0; k < 5; ++k) {
          const auto id = static_cast<size_t>(prompt.top5_ids[i][k]);
          worst = std::max(worst, std::abs(row[id] - prompt.top5[i][k]));
        }
        const bool same = argmax(row) == prompt.greedy[i];
        differing += same ? 0 : 1;
        if (prompt.margins[i] <= kMarginTolerance) continue;
        ++compared;
        EXPECT_TRUE(same) << prompt.name << ", token " << i << ", margin " << prompt.margins[i];
      }
    }
  });
  EXPECT_LT(worst, kLogitTolerance);
  EXPECT_EQ(compared, 1263);  // the others are near-ties of the reference itself
  printf("  worst logit error %.4f; %d of 1280 tokens differ, %d compared\n", worst, differing,
         compared);
}

class SmolLm2Free : public SmolLm2 {};

// A batch of prompts, each going on with its own tokens.
TEST_P(SmolLm2Free, Runs) {
  prompts_.resize(10);
  options_.sequences = static_cast<int>(prompts_.size());
  int followed = 0;
  run_model(*source_, options_, [&](ModelRank& model, int rank) {
    std::vector<int32_t> next(prompts_.size());
    std::vector<bool> diverged(prompts_.size(), false);
    for (size_t i = 0; i < prompts_[0].greedy.size(); ++i) {
      std::vector<Chunk> chunks;
      for (size_t p = 0; p < prompts_.size(); ++p) {
        const auto one = std::span<const int32_t>(&next[p], 1);
        const Chunk chunk{static_cast<int>(p), i == 0 ? prompts_[p].ids : one, 1};
        if (i == 0) {  // one prompt at a time: together they exceed max_tokens
          next[p] = argmax(model.step({&chunk, 1}).row(0));
        } else {
          chunks.push_back(chunk);
        }
      }
      if (i > 0) {
        const Logits& logits = model.step(chunks);
        for (size_t p = 0; p < prompts_.size(); ++p) next[p] = argmax(logits.row(p));
      }
      if (rank != 0) continue;
      for (size_t p = 0; p < prompts_.size(); ++p) {
        if (diverged[p]) continue;
        if (next[p] == prompts_[p].greedy[i]) {
          ++followed;
          continue;
        }
        diverged[p] = true;
        EXPECT_LE(prompts_[p].margins[i], kMarginTolerance) << prompts_[p].name << ", token " << i;
      }
    }
  });
  printf("  %d tokens as in the reference before the first that differs, of 640\n", followed);
  EXPECT_GE(followed, kFollowed);
}

std::string name_of(const testing::TestParamInfo<Layout>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Layouts, SmolLm2,
                         testing::Values(Layout{"tensor1", 1, 1}, Layout{"tensor2", 2, 1},
                                         Layout{"tensor3", 3, 1}, Layout{"tensor4", 4, 1},
                                         Layout{"tensor2_pipeline2", 2, 2}),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Layouts, SmolLm2Free,
                         testing::Values(Layout{"tensor1", 1, 1},
                                         Layout{"tensor2_pipeline2", 2, 2}),
                         name_of);

}  // namespace
}  // namespace trireme
