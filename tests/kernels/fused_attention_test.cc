// Norm, rope, KV write and attention in one op, over steps of decode rows, prefill rows and both.
#include <numeric>

#include "tests/kernels/paged_kv.h"

namespace trireme::testing {
namespace {

enum class Step : uint8_t { kDecode, kPrefill, kMixed };

struct Heads {
  int group = 1;
  int rotary = 64;
  bool norm = false;
  float magnitude = 1.0f;
  KvShape kv;
  AttentionParams params;

  int64_t q_cols() const { return int64_t{params.q_heads} * kv.head_dim; }
  int64_t kv_cols() const { return int64_t{kv.kv_heads} * kv.head_dim; }
  std::string describe() const {
    return fmt::format("{} kv heads x {}, dim {}, rotary {}, {}block {}, {}, window {}, softcap {}",
                       kv.kv_heads, group, kv.head_dim, rotary, norm ? "normed, " : "",
                       kv.block_size, to_string(kv.dtype), params.window, params.softcap);
  }
};

// Some sequences of random history, and what one step computes for them.
struct Batch {
  std::vector<std::vector<int32_t>> tables, seen;  // all blocks; those a row may look up
  std::vector<AttentionRow> rows;
  int tokens = 0;
  std::string description;
};

class FusedAttentionTest : public BackendTest {
 protected:
  static constexpr float kEps = 1e-6f;

  Heads random_heads() {
    Heads h;
    h.kv.kv_heads = random_.integer(1, 4);
    h.group = random_.pick({1, 2, 3, 4, 7, 8, 16});
    h.kv.head_dim = on_gpu() ? random_.pick({8, 40, 64, 72, 80, 96, 128, 128, 256})
                             : random_.pick({8, 20, 64, 80, 128});
    if (h.group > 4) h.kv.kv_heads = 1 + h.kv.kv_heads % 2;
    h.kv.block_size = on_gpu() ? random_.pick({8, 16, 24, 64}) : random_.pick({7, 16, 64});
    h.kv.dtype = on_gpu() ? kv_type() : random_.pick({DType::kF32, DType::kF16, DType::kBF16});
    h.rotary = random_.chance(0.25) ? h.kv.head_dim / 4 * 2 : h.kv.head_dim;
    h.norm = random_.chance(0.5);
    h.magnitude = random_.chance(0.2) ? 1.3f : 1.0f;
    h.params = {h.kv.kv_heads * h.group, 1.0f / std::sqrt(static_cast<float>(h.kv.head_dim)),
                random_.pick({0, 0, 1, 9, 100, 300}), random_.pick({0.0f, 0.0f, 0.0f, 10.0f})};
    return h;
  }

  // Decode rows first, as the scheduler plans them.
  std::vector<std::pair<int, int>> random_rows(Step step, int most_context) {
    std::vector<std::pair<int, int>> rows;  // tokens before, tokens now
    if (step != Step::kPrefill) {
      for (int i = random_.integer(1, 20); i > 0; --i) {
        rows.emplace_back(random_.chance(0.1) ? 0 : random_.integer(0, most_context), 1);
      }
    }
    if (step != Step::kDecode) {
      for (int i = random_.integer(1, 3); i > 0; --i) {
        rows.emplace_back(random_.chance(0.4) ? 0 : random_.integer(0, most_context),
                          random_.integer(2, 150));
      }
    }
    return rows;
  }

  Batch make_batch(PagedKv& kv, const Heads& heads, const std::vector<std::pair<int, int>>& rows) {
    Batch batch;
    for (const auto& [before, now] : rows) {
      batch.tables.push_back(kv.table(before + now));
      for (int p = 0; p < before; ++p) kv.put_random(random_, batch.tables.back(), p);
      batch.seen.push_back(kv.within_window(batch.tables.back(), before, heads.params.window));
      batch.description += fmt::format(" {}+{}", before, now);
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      batch.rows.push_back({batch.tokens, rows[r].second, rows[r].first, batch.seen[r].data()});
      batch.tokens += rows[r].second;
    }
    return batch;
  }

  void check(Backend& b, const Heads& heads, const std::vector<std::pair<int, int>>& rows) {
    int blocks = 3;
    for (const auto& [before, now] : rows) {
      blocks += (before + now + heads.kv.block_size - 1) / heads.kv.block_size;
    }
    PagedKv kv(random_, heads.kv, blocks);
    const Batch batch = make_batch(kv, heads, rows);
    SCOPED_TRACE(heads.describe() + "; rows" + batch.description);
    const KvLayerView view = kv.place(b);
    const int dim = heads.kv.head_dim;
    const int64_t q_cols = heads.q_cols(), kv_cols = heads.kv_cols();
    const int64_t cols = q_cols + 2 * kv_cols;
    const auto x = activations(batch.tokens * cols);
    const auto inv_freq = inverse_frequencies(heads.rotary);
    const auto q_norm = random_.normals(dim), k_norm = random_.normals(dim);
    const Buffer frequencies = b.upload(inv_freq);
    const Buffer q_norms = b.upload(q_norm), k_norms = b.upload(k_norm);
    GuardedMatrix qkv(b, batch.tokens, cols, activation());
    GuardedMatrix out(b, batch.tokens, q_cols, activation(), Margins::kAboveAndBelow);
    qkv.fill(x);
    const MatrixView whole = qkv.view();
    b.attention({whole.col_range(0, q_cols),
                 whole.col_range(q_cols, kv_cols),
                 whole.col_range(q_cols + kv_cols, kv_cols),
                 heads.params.q_heads,
                 heads.norm ? q_norms.as<float>() : nullptr,
                 heads.norm ? k_norms.as<float>() : nullptr,
                 kEps,
                 {frequencies.as<float>(), heads.rotary, heads.magnitude}},
                heads.params, batch.rows, view, out.view());
    const auto got = out.take();
    qkv.take();  // scratch now, but nothing around it

    // The cache: this step's keys within the rounding, its values exactly, all else untouched.
    const PagedKv after = kv.fetch(b);
    const auto prepared = [&](const float* from, const std::vector<float>& norm, int position) {
      return expected_head(from, dim, heads.rotary, heads.magnitude,
                           heads.norm ? norm.data() : nullptr, static_cast<double>(kEps), inv_freq,
                           position);
    };
    std::vector<double> want_k;
    std::vector<float> got_k;
    for_each_token(batch, [&](size_t r, int64_t token, int position) {
      for (int h = 0; h < heads.kv.kv_heads; ++h) {
        const float* k = x.data() + token * cols + q_cols + h * dim;
        const auto head = prepared(k, k_norm, position);
        want_k.insert(want_k.end(), head.begin(), head.end());
        const size_t at = kv.index(batch.tables[r], position, h, 0);
        for (size_t d = 0; d < static_cast<size_t>(dim); ++d) {
          got_k.push_back(after.k(at + d));
          kv.put_k(at + d, after.k(at + d));
          kv.put_v(at + d, k[static_cast<size_t>(kv_cols) + d]);
        }
      }
    });
    expect_close(relative_l2(got_k, want_k), heads.kv.dtype == DType::kF32   ? 1e-6
                                             : heads.kv.dtype == DType::kF16 ? 5e-4
                                                                             : 3e-3);
    EXPECT_TRUE(after.k_bytes() == kv.k_bytes());
    EXPECT_TRUE(after.v_bytes() == kv.v_bytes());

    // Attention over the cache as it is now; q as the activation type holds it.
    std::vector<double> want;
    for_each_token(batch, [&](size_t r, int64_t token, int position) {
      for (int h = 0; h < heads.params.q_heads; ++h) {
        const auto head = rounded(
            to_floats(prepared(x.data() + token * cols + h * dim, q_norm, position)), activation());
        const auto row =
            kv.attend(batch.tables[r], head.data(), position, h / heads.group, heads.params);
        want.insert(want.end(), row.begin(), row.end());
      }
    });
    expect_close(relative_l2(got, want), on_gpu() ? of_element(6e-3) : 5e-6);
  }

  template <typename Body>
  static void for_each_token(const Batch& batch, const Body& body) {
    for (size_t r = 0; r < batch.rows.size(); ++r) {
      const AttentionRow& row = batch.rows[r];
      for (int i = 0; i < row.count; ++i) body(r, row.token_begin + i, row.position + i);
    }
  }
  static std::vector<float> to_floats(const std::vector<double>& values) {
    return {values.begin(), values.end()};
  }
};

TEST_P(FusedAttentionTest, DecodeRows) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(24); ++round) {
    check(b, random_heads(), random_rows(Step::kDecode, round % 4 == 0 ? 1500 : 200));
  }
}

TEST_P(FusedAttentionTest, PrefillRows) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(16); ++round) {
    check(b, random_heads(), random_rows(Step::kPrefill, 300));
  }
}

TEST_P(FusedAttentionTest, DecodeAndPrefillRows) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(20); ++round) {
    check(b, random_heads(), random_rows(Step::kMixed, 300));
  }
}

// Lengths at which something ends: a block, a part of a split context, the window.
TEST_P(FusedAttentionTest, LengthsAtEdges) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(6); ++round) {
    Heads heads = random_heads();
    heads.params.window = random_.pick({0, 64, 65});
    std::vector<std::pair<int, int>> rows;
    for (const int length : {0, 1, 7, 8, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511, 512, 513}) {
      rows.emplace_back(length, 1);
    }
    rows.emplace_back(0, 64);
    rows.emplace_back(0, 65);
    rows.emplace_back(63, 2);
    rows.emplace_back(64, 128);
    check(b, heads, rows);
  }
}

// One long row among short ones: contexts are split unevenly.
TEST_P(FusedAttentionTest, SkewedLengths) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(4); ++round) {
    Heads heads = random_heads();
    heads.params.window = 0;
    std::vector<std::pair<int, int>> rows{{random_.integer(3000, 6000), 1}};
    for (int i = 0; i < 30; ++i) rows.emplace_back(random_.integer(0, 60), 1);
    check(b, heads, rows);
  }
}

TRIREME_ON_CPU(FusedAttentionTest);
TRIREME_ON_GPU(FusedAttentionTest);

}  // namespace
}  // namespace trireme::testing
