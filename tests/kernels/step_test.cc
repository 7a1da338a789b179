// Steps of a small decoder: the step's inputs named by begin_step(), rows padded, and work that is
// recorded and replayed. Compared with itself done anew, and with the reference backend.
#include <algorithm>
#include <array>

#include "tests/kernels/paged_kv.h"

namespace trireme::testing {
namespace {

constexpr int kHidden = 64, kQHeads = 4, kKvHeads = 2, kDim = 32, kFfn = 96, kVocab = 131;
constexpr int kBlockSize = 16, kMostTokens = 512;
constexpr int kQkvCols = (kQHeads + 2 * kKvHeads) * kDim;
constexpr std::array<int, 2> kWindows{0, 24};  // of the two layers, each a KV group of its own

struct Source {
  std::unique_ptr<TestWeight> q, k, v, o, gate, up, down;
  std::vector<float> attention_norm, ffn_norm;
};

// What both decoders are made of, rounded as the one under test holds it.
struct Sources {
  std::unique_ptr<TestWeight> embed, head;
  std::array<Source, 2> layers;
  std::vector<float> norm;

  Sources(const Backend& b, Random& random) {
    const auto weight = [&](int64_t rows, int64_t cols) {
      auto w = std::make_unique<TestWeight>(b, random, QuantFormat::kF32, rows, cols);
      const float scale = 1.0f / std::sqrt(static_cast<float>(cols));
      for (float& v : w->values) v *= scale;
      w->values = rounded(std::move(w->values), b.activation_dtype());
      std::memcpy(w->bytes.data(), w->values.data(), w->bytes.size());
      return w;
    };
    embed = weight(kVocab, kHidden);
    head = weight(kVocab, kHidden);
    norm = random.normals(kHidden);
    for (Source& layer : layers) {
      layer.q = weight(kQHeads * kDim, kHidden);
      layer.k = weight(kKvHeads * kDim, kHidden);
      layer.v = weight(kKvHeads * kDim, kHidden);
      layer.o = weight(kHidden, kQHeads * kDim);
      layer.gate = weight(kFfn, kHidden);
      layer.up = weight(kFfn, kHidden);
      layer.down = weight(kHidden, kFfn);
      layer.attention_norm = random.normals(kHidden);
      layer.ffn_norm = random.normals(kHidden);
    }
  }
};

// One step, in vectors that stay where they are until the next.
struct StepPlan {
  std::vector<int32_t> tokens, logit_tokens;
  std::vector<std::vector<AttentionRow>> groups;
  std::vector<std::vector<int32_t>> tables;
  bool decode = false;
};

class SmallDecoder {
 public:
  SmallDecoder(Backend& b, const Sources& sources, int blocks)
      : b_(b),
        embed_(b.make_weight(sources.embed->slice)),
        head_(b.make_weight(sources.head->slice)),
        norm_(b.upload(sources.norm)),
        inv_freq_(b.upload(inverse_frequencies(kDim))) {
    for (const Source& from : sources.layers) {
      Layer layer;
      const WeightSlice qkv[] = {from.q->slice, from.k->slice, from.v->slice};
      const WeightSlice gate_up[] = {from.gate->slice, from.up->slice};
      layer.qkv = b.make_weights(qkv);
      layer.o = b.make_weight(from.o->slice);
      layer.gate_up = b.make_weights(gate_up);
      layer.down = b.make_weight(from.down->slice);
      layer.attention_norm = b.upload(from.attention_norm);
      layer.ffn_norm = b.upload(from.ffn_norm);
      const auto elements = static_cast<size_t>(blocks) * kKvHeads * kBlockSize * kDim;
      layer.k = upload_bytes(b, std::vector<std::byte>(2 * elements, kPoison));
      layer.v = upload_bytes(b, std::vector<std::byte>(2 * elements, kPoison));
      layer.kv = {layer.k.data(), layer.v.data(), DType::kBF16, kKvHeads, kDim, kBlockSize, blocks};
      layers_.push_back(std::move(layer));
    }
    const auto rows = [&](int64_t cols, DType dtype) {
      return GuardedMatrix(b, kMostTokens, cols, dtype, Margins::kAboveAndBelow);
    };
    const DType type = b.activation_dtype();
    for (const auto& [cols, dtype] : {std::pair{kHidden, DType::kF32},
                                      {kHidden, type},
                                      {kQkvCols, type},
                                      {kQHeads * kDim, type},
                                      {2 * kFfn, type},
                                      {kHidden, DType::kF32},
                                      {kVocab, DType::kF32}}) {
      scratch_.push_back(rows(cols, dtype));
    }
  }

  void begin(const StepPlan& plan) {
    plan_ = &plan;
    b_.begin_step(
        {plan.tokens, {}, plan.groups, kWindows, plan.logit_tokens, kKvHeads, kDim, kBlockSize});
    for (GuardedMatrix& m : scratch_) m.poison();
  }
  // Logits of the step's logit tokens; with `recorded` through repeat().
  std::vector<float> run(bool recorded) {
    const auto count = static_cast<int64_t>(plan_->tokens.size());
    const auto logits = static_cast<int64_t>(plan_->logit_tokens.size());
    const bool pad = plan_->decode && logits == count;
    const int64_t rows = pad ? b_.padded_rows(count) : count;
    const int64_t logit_rows = pad ? rows : logits;
    EXPECT_GE(rows, count);
    EXPECT_LE(rows, kMostTokens);
    for (GuardedMatrix& m : scratch_) m.poison();
    if (recorded && pad) {
      b_.repeat({rows, true}, [&] {
        ++works_;
        work(rows, logit_rows);
      });
    } else {
      work(rows, logit_rows);
    }
    // Rows of padding may hold anything, but nothing around the matrices is written.
    std::vector<float> result = scratch_.back().look();
    for (size_t i = 0; i + 1 < scratch_.size(); ++i) scratch_[i].look();
    result.resize(static_cast<size_t>(logits * kVocab));
    return result;
  }
  int works() const { return works_; }

 private:
  struct Layer {
    std::vector<Weight> qkv, gate_up;
    Weight o, down;
    Buffer attention_norm, ffn_norm, k, v;
    KvLayerView kv;
  };
  MatrixView scratch(size_t i, int64_t rows) { return scratch_[i].view().row_range(0, rows); }

  void work(int64_t rows, int64_t logit_rows) {
    const MatrixView hidden = scratch(0, rows), normed = scratch(1, rows), qkv = scratch(2, rows);
    const MatrixView attended = scratch(3, rows), gate_up = scratch(4, rows);
    b_.embed(plan_->tokens, embed_, 0, 1.5f, hidden);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      QkvPrepare prepare;
      prepare.q = qkv.col_range(0, kQHeads * kDim);
      prepare.k = qkv.col_range(kQHeads * kDim, kKvHeads * kDim);
      prepare.v = qkv.col_range((kQHeads + kKvHeads) * kDim, kKvHeads * kDim);
      prepare.q_heads = kQHeads;
      prepare.rope = {inv_freq_.as<float>(), kDim, 1.0f};
      const LinearPart parts[] = {{&layer.qkv[0], nullptr, prepare.q, false},
                                  {&layer.qkv[1], nullptr, prepare.k, false},
                                  {&layer.qkv[2], nullptr, prepare.v, false}};
      b_.norm_linear(hidden, layer.attention_norm.as<float>(), 1e-5f, normed, parts);
      b_.attention(prepare,
                   {kQHeads, 1.0f / std::sqrt(static_cast<float>(kDim)), kWindows[i], 0.0f},
                   plan_->groups[i], layer.kv, attended);
      const LinearPart o{&layer.o, nullptr, hidden, true};
      b_.linear(attended, {&o, 1});
      const std::array<LinearPart, 2> gated{
          {{&layer.gate_up[0], nullptr, gate_up.col_range(0, kFfn), false},
           {&layer.gate_up[1], nullptr, gate_up.col_range(kFfn, kFfn), false}}};
      b_.gated_linear(hidden, layer.ffn_norm.as<float>(), 1e-5f, normed, gated, Activation::kSilu);
      const LinearPart down{&layer.down, nullptr, hidden, true};
      b_.linear(gated[0].out, {&down, 1});
    }
    const MatrixView wanted = scratch(5, logit_rows), logits = scratch(6, logit_rows);
    b_.gather_rows(scratch(0, rows), plan_->logit_tokens, wanted);
    const LinearPart head{&head_, nullptr, logits, false};
    b_.norm_linear(wanted, norm_.as<float>(), 1e-5f, scratch(1, logit_rows), {&head, 1});
  }

  Backend& b_;
  Weight embed_, head_;
  Buffer norm_, inv_freq_;
  std::vector<Layer> layers_;
  std::vector<GuardedMatrix> scratch_;  // the last holds the logits
  const StepPlan* plan_ = nullptr;
  int works_ = 0;
};

// Sequences with blocks of their own per KV group; windowed groups lose those behind the window.
class Sequences {
 public:
  Sequences(Random& random, int blocks) : random_(random) {
    for (auto& free : free_) {
      for (int i = 0; i < blocks; ++i) free.push_back(i);
      std::shuffle(free.begin(), free.end(), random.engine());
    }
  }
  size_t running() const { return lengths_.size(); }
  void add() {
    lengths_.push_back(0);
    for (auto& tables : tables_) tables.emplace_back();
  }
  void remove(size_t i) {
    for (size_t g = 0; g < tables_.size(); ++g) {
      for (const int32_t block : tables_[g][i]) {
        if (block >= 0) free_[g].push_back(block);
      }
      tables_[g].erase(tables_[g].begin() + static_cast<int64_t>(i));
    }
    lengths_.erase(lengths_.begin() + static_cast<int64_t>(i));
  }
  // counts[i] tokens for sequence i (0: none); decode rows must come first. Logits of each row's
  // last token.
  StepPlan plan(const std::vector<int>& counts) {
    StepPlan step;
    step.decode = true;
    step.groups.resize(tables_.size());
    int token = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      if (counts[i] == 0) continue;
      step.decode = step.decode && counts[i] == 1;
      const int first = lengths_[i];
      lengths_[i] += counts[i];
      for (size_t g = 0; g < tables_.size(); ++g) {
        auto& table = tables_[g][i];
        for (int b = 0; kWindows[g] > 0 && (b + 1) * kBlockSize <= first - kWindows[g] + 1; ++b) {
          int32_t& block = table[static_cast<size_t>(b)];
          if (block >= 0) free_[g].push_back(block);
          block = -1000000;
        }
        while (static_cast<int>(table.size()) * kBlockSize < lengths_[i]) {
          table.push_back(free_[g].back());
          free_[g].pop_back();
        }
        step.tables.push_back(table);
        step.groups[g].push_back({token, counts[i], first, nullptr});
      }
      for (int t = 0; t < counts[i]; ++t) step.tokens.push_back(random_.integer(0, kVocab - 1));
      token += counts[i];
      step.logit_tokens.push_back(token - 1);
    }
    for (size_t r = 0; r < step.groups[0].size(); ++r) {
      for (size_t g = 0; g < tables_.size(); ++g) {
        step.groups[g][r].blocks = step.tables[r * tables_.size() + g].data();
      }
    }
    return step;
  }

 private:
  Random& random_;
  std::vector<int> lengths_;
  std::array<std::vector<int32_t>, 2> free_;
  std::array<std::vector<std::vector<int32_t>>, 2> tables_;
};

class StepTest : public BackendTest {
 protected:
  // Activations are rounded to bf16 at some twenty places on the way to the logits.
  double tolerance() const { return on_gpu() ? 2.5e-2 : 2e-2; }
};

TEST_P(StepTest, PaddedRowsAreFewSizes) {
  Backend& b = backend(1);
  std::vector<int64_t> sizes;
  for (int64_t rows = 1; rows <= 600; ++rows) {
    const int64_t padded = b.padded_rows(rows);
    ASSERT_GE(padded, rows);
    ASSERT_EQ(b.padded_rows(padded), padded);
    if (rows <= 16) {
      ASSERT_EQ(padded, rows);
    }
    if (sizes.empty() || sizes.back() != padded) sizes.push_back(padded);
    ASSERT_TRUE(std::is_sorted(sizes.begin(), sizes.end()));
  }
}

// Prompts, then decode steps whose tokens, positions, tables and number of rows change under the
// same recorded work, with prompts in between.
TEST_P(StepTest, ReplaysSeeEachStepsInputs) {
  Backend& b = backend(2);
  ThreadPool pool(2);
  const auto reference = make_cpu_backend(pool, CpuIsa::kReference);
  const Sources sources(b, random_);
  constexpr int kBlocks = 700;
  SmallDecoder tested(b, sources, kBlocks), exact(*reference, sources, kBlocks);
  Sequences sequences(random_, kBlocks);
  int recorded = 0;
  const auto run = [&](const StepPlan& plan, const std::string& name) {
    SCOPED_TRACE(
        fmt::format("{}: {} rows, {} tokens", name, plan.groups[0].size(), plan.tokens.size()));
    exact.begin(plan);
    const auto want = exact.run(false);
    tested.begin(plan);
    // Twice the same: keys and values are written anew, with the same bits.
    const auto anew = tested.run(false);
    const auto replayed = tested.run(true);
    recorded += plan.decode;
    EXPECT_TRUE(same_bits(replayed, anew));
    expect_close(relative_l2(anew, want), tolerance());
  };
  // Three sizes: one of few rows, one that is padded, and one of many.
  for (const auto& [low, high] : {std::pair{3, 3}, {19, 24}, {66, 80}}) {
    while (sequences.running() > 0) sequences.remove(0);
    std::vector<int> counts;
    for (int i = 0; i < high; ++i) {
      sequences.add();
      counts.push_back(random_.integer(2, high > 30 ? 5 : 15));
    }
    run(sequences.plan(counts), "prompts");
    for (int step = 0; step < rounds(12); ++step) {
      const auto rows = static_cast<size_t>(random_.integer(low, high));
      while (sequences.running() > rows) {
        sequences.remove(
            static_cast<size_t>(random_.integer(0, static_cast<int>(sequences.running()) - 1)));
      }
      counts.assign(sequences.running(), 1);
      const size_t before = counts.size();
      while (sequences.running() < rows) {
        sequences.add();
        counts.push_back(random_.integer(2, 9));
      }
      run(sequences.plan(counts), counts.size() == before ? "decode" : "decode and prompts");
    }
  }
  // The work of a size ran at most twice: as it is, and while it was being recorded.
  if (on_gpu()) {
    EXPECT_LE(tested.works(), 3 * 2);
  } else {
    EXPECT_EQ(tested.works(), recorded);
  }
}

// A step with more KV groups than ever before needs room elsewhere: what was recorded is done anew.
TEST_P(StepTest, RecordedWorkOutlivesNoMove) {
  Backend& b = backend(2);
  ThreadPool pool(2);
  const auto reference = make_cpu_backend(pool, CpuIsa::kReference);
  const Sources sources(b, random_);
  SmallDecoder tested(b, sources, 100), exact(*reference, sources, 100);
  Sequences sequences(random_, 100);
  for (int i = 0; i < 5; ++i) sequences.add();
  const auto run = [&](const StepPlan& plan, bool recorded) {
    exact.begin(plan);
    tested.begin(plan);
    const auto want = exact.run(false);
    expect_close(relative_l2(tested.run(recorded), want), tolerance());
  };
  run(sequences.plan({9, 2, 30, 2, 17}), false);
  const std::vector<int> decode(5, 1);
  for (int i = 0; i < 4; ++i) run(sequences.plan(decode), true);
  // On the GPU: as it is, while it is being recorded, and once more if the first time took memory.
  const int before = tested.works();
  EXPECT_LE(before, on_gpu() ? 3 : 4);
  {
    const int32_t block = 0;
    const std::vector<std::vector<AttentionRow>> groups(7, {{0, 1, 0, &block}});
    const std::vector<int> windows(7, 0);
    const std::vector<int32_t> token{1};
    b.begin_step({token, {}, groups, windows, token, kKvHeads, kDim, kBlockSize});
    b.synchronize();
  }
  for (int i = 0; i < 4; ++i) run(sequences.plan(decode), true);
  EXPECT_EQ(tested.works(), before + (on_gpu() ? 2 : 4));
}

TRIREME_ON_CPU(StepTest);
TRIREME_ON_GPU(StepTest);

}  // namespace
}  // namespace trireme::testing
