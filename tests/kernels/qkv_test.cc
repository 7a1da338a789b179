#include "tests/kernels/paged_kv.h"

namespace trireme::testing {
namespace {

class QkvTest : public BackendTest {
 protected:
  struct Heads {
    int q = 1, kv = 1, dim = 64, rotary = 64;
    bool norm = false;
    float magnitude = 1.0f;
  };

  void check(Backend& b, const Heads& heads, DType dtype, int block_size) {
    const auto inv_freq = inverse_frequencies(heads.rotary);
    const auto q_norm = random_.normals(heads.dim), k_norm = random_.normals(heads.dim);
    const Buffer frequencies = b.upload(inv_freq);
    const Buffer q_norms = b.upload(q_norm), k_norms = b.upload(k_norm);
    // A chunk and two single tokens, each with blocks of their own; those before have been freed.
    const int counts[] = {random_.integer(1, 40), 1, 1};
    std::vector<AttentionRow> rows;
    std::vector<std::vector<int32_t>> tables;
    int tokens = 0;
    int32_t next_block = 1;
    for (const int count : counts) {
      const int position = random_.integer(0, 5000);
      std::vector<int32_t> table(static_cast<size_t>((position + count) / block_size + 1), -9);
      for (int p = position; p < position + count; ++p) {
        int32_t& block = table[static_cast<size_t>(p / block_size)];
        if (block < 0) block = next_block++;
      }
      tables.push_back(std::move(table));
      rows.push_back({tokens, count, position, tables.back().data()});
      tokens += count;
    }
    PagedKv before(random_, {heads.kv, heads.dim, block_size, dtype}, next_block + 1);
    const KvLayerView view = before.place(b);
    // Columns of one matrix, as a QKV product leaves them.
    const int64_t q_cols = heads.q * heads.dim, kv_cols = heads.kv * heads.dim;
    const auto q = activations(tokens * q_cols), k = activations(tokens * kv_cols),
               v = activations(tokens * kv_cols);
    GuardedMatrix qkv(b, tokens, q_cols + 2 * kv_cols, activation());
    std::vector<float> all;
    for (int64_t t = 0; t < tokens; ++t) {
      all.insert(all.end(), q.begin() + t * q_cols, q.begin() + (t + 1) * q_cols);
      all.insert(all.end(), k.begin() + t * kv_cols, k.begin() + (t + 1) * kv_cols);
      all.insert(all.end(), v.begin() + t * kv_cols, v.begin() + (t + 1) * kv_cols);
    }
    qkv.fill(all);
    const MatrixView whole = qkv.view();
    b.prepare_qkv({whole.col_range(0, q_cols),
                   whole.col_range(q_cols, kv_cols),
                   whole.col_range(q_cols + kv_cols, kv_cols),
                   heads.q,
                   heads.norm ? q_norms.as<float>() : nullptr,
                   heads.norm ? k_norms.as<float>() : nullptr,
                   1e-6f,
                   {frequencies.as<float>(), heads.rotary, heads.magnitude}},
                  rows, view);

    const PagedKv after = before.fetch(b);
    const auto prepared = qkv.take();
    std::vector<double> want_q, want_k;
    std::vector<float> got_q, got_k;
    for (const AttentionRow& row : rows) {
      const auto& table = tables[static_cast<size_t>(&row - rows.data())];
      for (int i = 0; i < row.count; ++i) {
        const int position = row.position + i, token = row.token_begin + i;
        const auto from = prepared.begin() + token * (q_cols + 2 * kv_cols);
        got_q.insert(got_q.end(), from, from + q_cols);
        for (int h = 0; h < heads.q; ++h) {
          const auto head = expected_head(
              q.data() + (token * heads.q + h) * heads.dim, heads.dim, heads.rotary,
              heads.magnitude, heads.norm ? q_norm.data() : nullptr, 1e-6, inv_freq, position);
          want_q.insert(want_q.end(), head.begin(), head.end());
        }
        for (int h = 0; h < heads.kv; ++h) {
          const size_t input = static_cast<size_t>((token * heads.kv + h) * heads.dim);
          const auto head =
              expected_head(k.data() + input, heads.dim, heads.rotary, heads.magnitude,
                            heads.norm ? k_norm.data() : nullptr, 1e-6, inv_freq, position);
          want_k.insert(want_k.end(), head.begin(), head.end());
          const size_t at = before.index(table, position, h, 0);
          for (size_t d = 0; d < static_cast<size_t>(heads.dim); ++d) {
            got_k.push_back(after.k(at + d));
            // What should be there now; the keys are only known within the tolerance.
            before.put_k(at + d, after.k(at + d));
            before.put_v(at + d, v[input + d]);
          }
        }
      }
    }
    expect_close(relative_l2(got_q, want_q), on_gpu() ? of_element(3e-3) : 1e-6);
    const double rounding = dtype == DType::kF32 ? 1e-6 : dtype == DType::kF16 ? 5e-4 : 3e-3;
    expect_close(relative_l2(got_k, want_k), rounding);
    // Values exactly as their type holds them, and nothing else was written.
    EXPECT_TRUE(after.v_bytes() == before.v_bytes());
    EXPECT_TRUE(after.k_bytes() == before.k_bytes());
  }
};
class QkvCpuTest : public QkvTest {};

TEST_P(QkvTest, NormsRotatesAndStores) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(32); ++round) {
    Heads heads;
    heads.kv = random_.integer(1, 4);
    heads.q = heads.kv * random_.integer(1, 4);
    heads.dim =
        on_gpu() ? random_.pick({8, 24, 64, 80, 96, 128, 256}) : random_.pick({8, 20, 64, 80, 128});
    heads.rotary = round % 4 == 0 ? heads.dim / 2 : heads.dim;
    heads.norm = round % 2 == 0;
    heads.magnitude = round % 5 == 0 ? 1.3f : 1.0f;
    const DType dtype = on_gpu() ? kv_type() : kDTypes[round % 3];
    SCOPED_TRACE(fmt::format("{} q, {} kv, dim {}, rotary {}, {}", heads.q, heads.kv, heads.dim,
                             heads.rotary, to_string(dtype)));
    check(b, heads, dtype, random_.pick({7, 16, 64}));
  }
}

// Cosines are kept between calls: other positions and other frequencies must not see them.
TEST_P(QkvCpuTest, CachedAnglesFollowTheirInputs) {
  Backend& b = backend(1);
  std::vector<float> freq{1.0f, 0.1f};
  const auto rotate = [&](int position) {
    std::vector<float> k(4, 1.0f), v(4, 1.0f), k_cache(64), v_cache(64);
    GuardedMatrix q(b, 1, 4, DType::kF32);
    q.fill({1, 2, 3, 4});
    const int32_t block = 0;
    std::vector<int32_t> table(static_cast<size_t>(position + 1), block);
    const AttentionRow row{0, 1, position, table.data()};
    b.prepare_qkv({q.view(),
                   matrix_f32(k.data(), 1, 4),
                   matrix_f32(v.data(), 1, 4),
                   1,
                   nullptr,
                   nullptr,
                   0.0f,
                   {freq.data(), 4, 1.0f}},
                  {&row, 1}, {k_cache.data(), v_cache.data(), DType::kF32, 1, 4, 1});
    return q.take();
  };
  const auto first = rotate(3);
  EXPECT_TRUE(same_bits(rotate(3), first));
  EXPECT_FALSE(same_bits(rotate(4), first));
  freq[1] = 0.2f;
  EXPECT_FALSE(same_bits(rotate(3), first));
  freq[1] = 0.1f;
  EXPECT_TRUE(same_bits(rotate(3), first));
}

TRIREME_ON_CPU(QkvTest);
TRIREME_ON_GPU(QkvTest);
TRIREME_ON_CPU(QkvCpuTest);

}  // namespace
}  // namespace trireme::testing
