// Every fixture model on every layout gives Hugging Face's logits and greedy tokens.
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "tests/support/logit_tolerance.h"
#include "tests/support/model_runner.h"
#include "tests/support/relative_l2.h"

namespace trireme {
namespace {

// Greedy tokens are compared where the reference's best logit leads by more than this. With layers
// of bf16 whose activations are rounded to it, leads of up to 0.08 were lost.
float margin_tolerance(const FixtureEntry& entry, CpuIsa isa) {
  if (entry.quantized()) return 2e-2f;
  return rounds_to_bf16(entry, isa) ? 0.2f : 1e-3f;
}

struct LayoutCase {
  std::string name;
  LayoutSpec spec;
};

std::vector<LayoutCase> layouts() {
  std::vector<LayoutCase> cases;
  for (int pipeline = 1; pipeline <= 3; ++pipeline) {
    for (int tensor = 1; tensor <= 4; ++tensor) {
      LayoutSpec spec;
      spec.stages.assign(static_cast<size_t>(pipeline), {tensor, 0});
      cases.push_back({"tensor" + std::to_string(tensor) + "_pipeline" + std::to_string(pipeline),
                       std::move(spec)});
    }
  }
  cases.push_back({"stages_2_1", {{{2, 1}, {1, 0}}}});
  cases.push_back({"stages_1_3", {{{1, 0}, {3, 1}}}});
  cases.push_back({"stages_3_1_2", {{{3, 1}, {1, 0}, {2, 1}}}});
  return cases;
}

using Case = std::tuple<FixtureEntry, LayoutCase>;

class Parity : public testing::TestWithParam<Case> {};

struct Worst {
  double logits = 0.0;
  float lost_margin = 0.0f;  // the largest lead of a token that was not chosen
  int compared = 0;
};

void compare(const Logits& logits, const Expected& expected, const FixtureEntry& entry, CpuIsa isa,
             Worst& worst) {
  size_t row = 0;
  const bool most = rounds_before_router(entry, isa);
  int rows = 0, far = 0, lost = 0;
  const auto check = [&](std::span<const float> got, std::span<const float> want) {
    const double error = relative_l2(got, want);
    ++rows;
    if (error >= logit_tolerance(entry, isa)) ++far;
    worst.logits = std::max(worst.logits, error);
  };
  for (size_t p = 0; p < expected.prompts.size(); ++p) {
    SCOPED_TRACE("prompt " + std::to_string(p));
    const ExpectedPrompt& prompt = expected.prompts[p];
    if (p == expected.all_positions_prompt) {
      for (size_t t = 0; t + 1 < prompt.ids.size(); ++t) {
        const auto vocab = static_cast<size_t>(expected.vocab);
        check(logits.row(row++), std::span(expected.all_positions).subspan(t * vocab, vocab));
      }
    }
    check(logits.row(row), prompt.last_logits);
    for (size_t i = 0; i < prompt.greedy.size(); ++i, ++row) {
      const int32_t chosen = argmax(logits.row(row));
      if (chosen != prompt.greedy[i]) {
        worst.lost_margin = std::max(worst.lost_margin, prompt.margins[i]);
      }
      if (prompt.margins[i] < margin_tolerance(entry, isa)) continue;
      if (!most) {
        EXPECT_EQ(chosen, prompt.greedy[i]) << "greedy token " << i;
      }
      if (chosen != prompt.greedy[i]) ++lost;
      ++worst.compared;
    }
  }
  EXPECT_LE(far, most ? rows / 4 : 0)
      << "of " << rows << " rows are farther than " << logit_tolerance(entry, isa);
  EXPECT_LE(lost, most ? worst.compared / 10 : 0) << "of " << worst.compared;
}

// One batch of all prompts with their reference continuations: the logits at every step of a
// greedy run, as long as the run goes as the reference's.
TEST_P(Parity, LogitsAndGreedyTokens) {
  const auto& [entry, layout] = GetParam();
  const auto source = open_model(entry.path);
  const Expected expected = read_expected(entry);
  ASSERT_EQ(source->config().vocab, expected.vocab);
  std::vector<std::vector<int32_t>> tokens;
  std::vector<Chunk> chunks;
  for (const ExpectedPrompt& prompt : expected.prompts) {
    tokens.push_back(prompt.ids);
    tokens.back().insert(tokens.back().end(), prompt.greedy.begin(), prompt.greedy.end() - 1);
  }
  for (size_t p = 0; p < tokens.size(); ++p) {
    const bool all = p == expected.all_positions_prompt;
    const size_t rows = all ? tokens[p].size() : expected.prompts[p].greedy.size();
    chunks.push_back({static_cast<int>(p), tokens[p], static_cast<int>(rows)});
  }
  RunOptions options;
  options.layout = layout.spec;
  options.sequences = static_cast<int>(tokens.size());
  std::vector<CpuIsa> isas = {best_cpu_isa()};
  if (rounds_to_bf16(entry, isas[0])) isas.push_back(CpuIsa::kAvx512);  // which does not round
  for (const CpuIsa isa : isas) {
    SCOPED_TRACE(to_string(isa));
    options.isa = isa;
    Worst worst;
    run_model(*source, options, [&](ModelRank& model, int rank) {
      const Logits& logits = model.step(chunks);
      if (rank == 0) compare(logits, expected, entry, isa, worst);
    });
    EXPECT_GT(worst.compared, 150);
    RecordProperty("worst_relative_l2", std::to_string(worst.logits));
    printf("  %s: worst relative L2 %.2e, %d greedy tokens compared, largest lead lost %.4f\n",
           to_string(isa), worst.logits, worst.compared, worst.lost_margin);
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Parity,
                         testing::Combine(testing::ValuesIn(fixture_models(TRIREME_FIXTURES)),
                                          testing::ValuesIn(layouts())),
                         [](const testing::TestParamInfo<Case>& info) {
                           return test_name(std::get<0>(info.param).name + "_" +
                                            std::get<1>(info.param).name);
                         });

}  // namespace
}  // namespace trireme
