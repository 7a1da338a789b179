// What must not change the answer: the instruction set (within rounding), the cut of a prompt into
// chunks, and of a chunk into the parts that hide sums, the company in a batch, the block size. And
// windows see exactly what they should.
#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "kernels/cpu/isa.h"
#include "tests/support/logit_tolerance.h"
#include "tests/support/model_runner.h"
#include "tests/support/relative_l2.h"

namespace trireme {
namespace {

std::vector<CpuIsa> machine_isas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : kCpuIsas) {
    if (cpu::machine_has(isa)) isas.push_back(isa);
  }
  return isas;
}

LayoutSpec uniform(int tensor, int pipeline) {
  LayoutSpec spec;
  spec.stages.assign(static_cast<size_t>(pipeline), {tensor, 0});
  return spec;
}

// The logits after each token of `tokens`, fed in chunks of `chunk`.
std::vector<float> run_in_chunks(const WeightSource& source, const RunOptions& options,
                                 std::span<const int32_t> tokens, size_t chunk) {
  std::vector<float> all;
  run_model(source, options, [&](ModelRank& model, int rank) {
    for (size_t at = 0; at < tokens.size(); at += chunk) {
      const size_t count = std::min(chunk, tokens.size() - at);
      const Chunk part{0, tokens.subspan(at, count), static_cast<int>(count)};
      const Logits& logits = model.step({&part, 1});
      if (rank == 0) all.insert(all.end(), logits.values.begin(), logits.values.end());
    }
  });
  return all;
}

class EveryModel : public testing::TestWithParam<FixtureEntry> {
 protected:
  std::unique_ptr<WeightSource> source_ = open_model(GetParam().path);
  Expected expected_ = read_expected(GetParam());
};

TEST_P(EveryModel, GivesTheReferencesLogitsOnEveryInstructionSet) {
  const ExpectedPrompt& prompt = expected_.prompts.back();
  const Chunk chunk{0, prompt.ids, 1};
  for (const CpuIsa isa : machine_isas()) {
    if (rounds_before_router(GetParam(), isa)) continue;  // one prompt says little: parity_test
    for (const int tensor : {1, 2, 4}) {
      RunOptions options;
      options.isa = isa;
      options.layout = uniform(tensor, 1);
      run_model(*source_, options, [&](ModelRank& model, int rank) {
        const Logits& logits = model.step({&chunk, 1});
        if (rank != 0) return;
        EXPECT_LT(relative_l2(logits.row(0), prompt.last_logits), logit_tolerance(GetParam(), isa))
            << to_string(isa) << ", tensor=" << tensor;
      });
    }
  }
}

TEST_P(EveryModel, AnswersTheSameBitsForAnyChunks) {
  const std::span<const int32_t> tokens = expected_.prompts[5].ids;  // three blocks
  ASSERT_EQ(tokens.size(), 48u);
  for (const CpuIsa isa : machine_isas()) {
    RunOptions options;
    options.isa = isa;
    const auto whole = run_in_chunks(*source_, options, tokens, tokens.size());
    for (const size_t chunk : {1, 3, 16, 17}) {
      EXPECT_EQ(run_in_chunks(*source_, options, tokens, chunk), whole)
          << to_string(isa) << ", chunks of " << chunk;
    }
  }
  RunOptions options;
  options.isa = best_cpu_isa();
  options.layout = uniform(2, 2);
  const auto some = tokens.first(20);
  const auto whole = run_in_chunks(*source_, options, some, some.size());
  for (const size_t chunk : {1, 17}) {
    EXPECT_EQ(run_in_chunks(*source_, options, some, chunk), whole) << "chunks of " << chunk;
  }
}

// Three sequences of several lengths, then the next tokens of all: the cuts fall within sequences
// and between them.
TEST_P(EveryModel, AnswersTheSameBitsInTwoParts) {
  RunOptions options;
  options.isa = best_cpu_isa();
  options.layout = uniform(3, 1);
  options.sequences = 3;
  run_model(*source_, options, [&](ModelRank& model, int rank) {
    const auto run = [&](PrefillParts parts) {
      model.decoder().set_parts(std::move(parts));
      std::vector<float> all;
      for (int s = 0; s < options.sequences; ++s) model.restart(s);
      for (const size_t begin : {0, 11}) {
        std::vector<Chunk> chunks;
        for (const int s : {0, 1, 2}) {
          const auto& ids = expected_.prompts[static_cast<size_t>(s) + 3].ids;
          chunks.push_back({s, std::span(ids).subspan(begin, begin == 0 ? 11 : 5), 3});
        }
        const Logits& logits = model.step(chunks);
        all.insert(all.end(), logits.values.begin(), logits.values.end());
      }
      return all;
    };
    const auto whole = run(PrefillParts(std::vector<PrefillParts::Choice>{}));
    for (const int eighths : {1, 4, 7}) {
      const auto cut = run(PrefillParts({{0, eighths, 0.0, 0.0}}));
      if (rank != 0) continue;
      EXPECT_EQ(cut, whole) << eighths << "/8";
    }
  });
}

TEST_P(EveryModel, AnswersTheSameBitsInABatch) {
  RunOptions options;
  options.isa = best_cpu_isa();
  options.layout = uniform(2, 1);
  options.sequences = 32;
  std::vector<Chunk> chunks;
  for (int s = 0; s < 32; ++s) {
    const auto& ids = expected_.prompts[static_cast<size_t>(s) % expected_.prompts.size()].ids;
    chunks.push_back({s, ids, 1});
  }
  options.max_tokens = 2048;
  run_model(*source_, options, [&](ModelRank& model, int rank) {
    const Logits together = model.step(chunks);
    for (size_t p = 0; p < expected_.prompts.size(); ++p) {
      model.restart(static_cast<int>(p));
      const std::vector<float> alone = model.step({&chunks[p], 1}).values;
      if (rank != 0) continue;
      for (size_t s = p; s < chunks.size(); s += expected_.prompts.size()) {
        const auto row = together.row(s);
        EXPECT_EQ(std::vector<float>(row.begin(), row.end()), alone) << "sequence " << s;
      }
    }
  });
}

TEST_P(EveryModel, AnswersTheSameBitsForAnyBlockSize) {
  const auto& tokens = expected_.prompts.back().ids;
  RunOptions options;
  options.isa = best_cpu_isa();
  const auto sixteen = run_in_chunks(*source_, options, tokens, 40);
  options.block_size = 32;
  EXPECT_EQ(run_in_chunks(*source_, options, tokens, 40), sixteen);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, EveryModel, testing::ValuesIn(fixture_models(TRIREME_FIXTURES)),
                         [](const auto& info) { return test_name(info.param.name); });

// A model's tensors under another configuration.
class WithConfig : public WeightSource {
 public:
  WithConfig(const WeightSource& base, ModelConfig config)
      : base_(base), config_(std::move(config)) {}
  const ModelConfig& config() const override { return config_; }
  const std::string& path() const override { return base_.path(); }
  std::optional<SourceTensor> find(const std::string& name) const override {
    return base_.find(name);
  }
  void release(const SourceTensor& tensor) const override { base_.release(tensor); }
  std::vector<SourceTensor> tensors() const override { return base_.tensors(); }

 private:
  const WeightSource& base_;
  ModelConfig config_;
};

// With windows of w in every layer, a token's logits depend on the last layers * (w - 1) + 1
// tokens and on no earlier one.
TEST(Windows, SeeExactlyTheLastTokens) {
  constexpr int kWindow = 5;
  const auto base = open_model(fixture_model(TRIREME_FIXTURES, "qwen2").path);
  ModelConfig config = base->config();
  for (LayerConfig& layer : config.layers) layer.window = kWindow;
  const WithConfig source(*base, config);
  const size_t reach = config.layers.size() * (kWindow - 1) + 1;
  std::vector<int32_t> tokens =
      read_expected(fixture_model(TRIREME_FIXTURES, "qwen2")).prompts.back().ids;
  const auto last = [&](const std::vector<int32_t>& ids, const RunOptions& options) {
    const auto all = run_in_chunks(source, options, ids, 7);
    return std::vector<float>(all.end() - config.vocab, all.end());
  };
  const auto changed = [&](size_t from_end) {
    auto ids = tokens;
    int32_t& id = ids[ids.size() - 1 - from_end];
    id = (id + 1) % static_cast<int32_t>(config.vocab);
    return ids;
  };
  for (const CpuIsa isa : machine_isas()) {
    RunOptions options;
    options.isa = isa;
    const auto want = last(tokens, options);
    EXPECT_EQ(last(changed(reach), options), want) << to_string(isa);
    EXPECT_NE(last(changed(reach - 1), options), want) << to_string(isa);
    options.layout = uniform(2, 2);
    EXPECT_LT(relative_l2(last(tokens, options), want), 2e-5) << to_string(isa);
  }
}

// Some layers with a window, some without: two KV groups.
TEST(Windows, MixWithFullLayers) {
  const auto base = open_model(fixture_model(TRIREME_FIXTURES, "qwen3").path);
  const auto tokens = read_expected(fixture_model(TRIREME_FIXTURES, "qwen3")).prompts.back().ids;
  RunOptions options;
  options.isa = best_cpu_isa();
  options.layout = uniform(1, 2);
  const auto run_with_window = [&](int window) {
    ModelConfig config = base->config();
    for (size_t i = 2; i < config.layers.size(); ++i) config.layers[i].window = window;
    const WithConfig source(*base, config);
    EXPECT_EQ(kv_groups(config).windows.size(), 2u);
    return run_in_chunks(source, options, tokens, 16);
  };
  const auto full = run_in_chunks(*base, options, tokens, 16);
  EXPECT_EQ(run_with_window(100), full);  // the prompt has 100 tokens
  const auto narrow = run_with_window(20);
  const auto vocab = static_cast<size_t>(base->config().vocab);
  const auto row = [&](const std::vector<float>& all, size_t t) {
    return std::vector<float>(all.begin() + static_cast<ptrdiff_t>(t * vocab),
                              all.begin() + static_cast<ptrdiff_t>((t + 1) * vocab));
  };
  EXPECT_EQ(row(narrow, 19), row(full, 19));  // position 19 sees 0..19 either way
  EXPECT_NE(row(narrow, 20), row(full, 20));
}

TEST(Decoder, RefusesWhatItCannotCompute) {
  const auto base = open_model(fixture_model(TRIREME_FIXTURES, "llama3").path);
  const auto refused = [&](auto change) {
    ModelConfig config = base->config();
    change(config);
    const ParallelLayout layout = make_layout(uniform(1, 1), config.shape(1), 1);
    ThreadPool pool(1);
    const auto backend = make_cpu_backend(pool, CpuIsa::kReference);
    const auto single = make_single_communicator();
    TensorSums sums(*single, *backend);
    try {
      Decoder decoder(config, layout, 0, {}, *backend, sums, 16);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kUnimplemented;
    }
    return false;
  };
  EXPECT_FALSE(refused([](ModelConfig&) {}));
  EXPECT_TRUE(refused([](ModelConfig& config) { config.final_softcap = 30.0f; }));
}

}  // namespace
}  // namespace trireme
