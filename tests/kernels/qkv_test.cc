#include "tests/kernels/testing.h"

namespace trireme::testing {
namespace {

class QkvTest : public IsaTest {
 protected:
  struct Heads {
    int q = 1, kv = 1, dim = 64, rotary = 64;
    bool norm = false;
    float magnitude = 1.0f;
  };

  // One head, in float64 but for the angle, which is a float32 product by definition.
  static std::vector<double> expected_head(const float* x, const Heads& heads, const float* norm,
                                           const std::vector<float>& inv_freq, int position) {
    std::vector<double> v(x, x + heads.dim);
    if (norm != nullptr) {
      double squares = 0;
      for (const double e : v) squares += e * e;
      const double root = std::sqrt(squares / heads.dim + 1e-6);
      for (int i = 0; i < heads.dim; ++i) v[static_cast<size_t>(i)] *= norm[i] / root;
    }
    const auto half = static_cast<size_t>(heads.rotary / 2);
    for (size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * inv_freq[i];
      const double c = std::cos(static_cast<double>(angle)) * heads.magnitude;
      const double s = std::sin(static_cast<double>(angle)) * heads.magnitude;
      const double a = v[i], b = v[half + i];
      v[i] = a * c - b * s;
      v[half + i] = b * c + a * s;
    }
    return v;
  }

  void check(Backend& b, const Heads& heads, DType dtype, int block_size) {
    std::vector<float> inv_freq;
    for (int i = 0; i < heads.rotary / 2; ++i) {
      inv_freq.push_back(
          static_cast<float>(std::pow(10000.0, -2.0 * i / static_cast<double>(heads.rotary))));
    }
    const auto q_norm = random_.normals(heads.dim), k_norm = random_.normals(heads.dim);
    // A chunk and two single tokens, each with blocks of their own.
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
    const int64_t head_elements = int64_t{block_size} * heads.dim;
    const auto bytes =
        static_cast<size_t>((next_block + 1) * heads.kv * head_elements) * size_of(dtype);
    std::vector<std::byte> k_cache(bytes, std::byte{0xff}), v_cache(bytes, std::byte{0xff});
    const auto q = random_.normals(int64_t{tokens} * heads.q * heads.dim);
    const auto k = random_.normals(int64_t{tokens} * heads.kv * heads.dim);
    const auto v = random_.normals(int64_t{tokens} * heads.kv * heads.dim);
    GuardedMatrix qm(tokens, heads.q * heads.dim), km(tokens, heads.kv * heads.dim),
        vm(tokens, heads.kv * heads.dim);
    qm.fill(q);
    km.fill(k);
    vm.fill(v);
    QkvPrepare call{qm.view(),
                    km.view(),
                    vm.view(),
                    heads.q,
                    heads.norm ? q_norm.data() : nullptr,
                    heads.norm ? k_norm.data() : nullptr,
                    1e-6f,
                    {inv_freq.data(), heads.rotary, heads.magnitude}};
    b.prepare_qkv(call, rows,
                  {k_cache.data(), v_cache.data(), dtype, heads.kv, heads.dim, block_size});

    std::vector<double> want_q, want_k;
    std::vector<float> got_k, got_v;
    size_t written = 0;
    const auto stored = [&](const std::vector<std::byte>& cache, size_t i) {
      if (dtype == DType::kF32) return reinterpret_cast<const float*>(cache.data())[i];
      const uint16_t bits = reinterpret_cast<const uint16_t*>(cache.data())[i];
      return dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    };
    for (const AttentionRow& row : rows) {
      for (int i = 0; i < row.count; ++i) {
        const int position = row.position + i, token = row.token_begin + i;
        for (int h = 0; h < heads.q; ++h) {
          const auto head = expected_head(q.data() + (token * heads.q + h) * heads.dim, heads,
                                          call.q_norm, inv_freq, position);
          want_q.insert(want_q.end(), head.begin(), head.end());
        }
        for (int h = 0; h < heads.kv; ++h) {
          const auto head = expected_head(k.data() + (token * heads.kv + h) * heads.dim, heads,
                                          call.k_norm, inv_freq, position);
          want_k.insert(want_k.end(), head.begin(), head.end());
          const auto at = static_cast<size_t>(
              ((int64_t{row.blocks[position / block_size]} * heads.kv + h) * block_size +
               position % block_size) *
              heads.dim);
          for (size_t d = 0; d < static_cast<size_t>(heads.dim); ++d) {
            got_k.push_back(stored(k_cache, at + d));
            got_v.push_back(stored(v_cache, at + d));
          }
          written += static_cast<size_t>(heads.dim) * size_of(dtype);
        }
      }
    }
    EXPECT_LE(relative_l2(qm.take(), want_q), 1e-6);
    const double rounding = dtype == DType::kF32 ? 1e-6 : dtype == DType::kF16 ? 5e-4 : 4e-3;
    EXPECT_LE(relative_l2(got_k, want_k), rounding);
    for (size_t i = 0; i < got_v.size(); ++i) {
      const float want = dtype == DType::kF32   ? v[i]
                         : dtype == DType::kF16 ? f16_to_f32(f32_to_f16(v[i]))
                                                : bf16_to_f32(f32_to_bf16(v[i]));
      ASSERT_EQ(got_v[i], want) << i;
    }
    // Nothing but these positions was written. (0xff bytes occur in values too, so: at least.)
    size_t poisoned = 0;
    for (const std::byte byte : k_cache) poisoned += byte == std::byte{0xff};
    EXPECT_GE(poisoned, bytes - written);
    vm.take();
    km.take();
  }
};

TEST_P(QkvTest, NormsRotatesAndStores) {
  Backend& b = backend(2);
  for (int round = 0; round < 24; ++round) {
    Heads heads;
    heads.kv = random_.integer(1, 4);
    heads.q = heads.kv * random_.integer(1, 4);
    heads.dim = random_.pick({8, 20, 64, 80, 128});
    heads.rotary = round % 4 == 0 ? heads.dim / 2 : heads.dim;
    heads.norm = round % 2 == 0;
    heads.magnitude = round % 5 == 0 ? 1.3f : 1.0f;
    const DType dtype = kDTypes[round % 3];
    SCOPED_TRACE(fmt::format("{} q, {} kv, dim {}, rotary {}, {}", heads.q, heads.kv, heads.dim,
                             heads.rotary, to_string(dtype)));
    check(b, heads, dtype, random_.pick({7, 16, 64}));
  }
}

// Cosines are kept between calls: other positions and other frequencies must not see them.
TEST_P(QkvTest, CachedAnglesFollowTheirInputs) {
  Backend& b = backend(1);
  std::vector<float> freq{1.0f, 0.1f};
  const auto rotate = [&](int position) {
    std::vector<float> k(4, 1.0f), v(4, 1.0f), k_cache(64), v_cache(64);
    GuardedMatrix q(1, 4);
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

INSTANTIATE_TEST_SUITE_P(Cpu, QkvTest, ::testing::ValuesIn(kIsas), isa_name);

}  // namespace
}  // namespace trireme::testing
