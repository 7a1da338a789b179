#include "tests/kernels/paged_kv.h"

namespace trireme::testing {
namespace {

struct Shape {
  int kv_heads = 1;
  int group = 1;
  int head_dim = 64;
  int block_size = 16;
  DType dtype = DType::kF32;
  int window = 0;
  float softcap = 0.0f;
};

std::string describe(const Shape& s) {
  return fmt::format("{} kv heads x {}, dim {}, block {}, {}, window {}, softcap {}", s.kv_heads,
                     s.group, s.head_dim, s.block_size, to_string(s.dtype), s.window, s.softcap);
}

KvShape kv_shape(const Shape& s) { return {s.kv_heads, s.head_dim, s.block_size, s.dtype}; }

// One sequence of random q, k, v and its paged KV: blocks in random order among poisoned ones.
class TestSequence {
 public:
  TestSequence(Backend& b, Random& random, const Shape& shape, int length)
      : shape_(shape),
        length_(length),
        kv_(random, kv_shape(shape), (length + shape.block_size - 1) / shape.block_size + 3),
        table_(kv_.table(length)),
        q_(rounded(random.normals(int64_t{length} * q_cols()), b.activation_dtype())) {
    for (int p = 0; p < length; ++p) kv_.put_random(random, table_, p);
    view_ = kv_.place(b);
  }

  int q_cols() const { return shape_.kv_heads * shape_.group * shape_.head_dim; }
  int length() const { return length_; }
  const KvLayerView& kv() const { return view_; }
  AttentionParams params() const {
    return {shape_.kv_heads * shape_.group, 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
            shape_.window, shape_.softcap};
  }
  // The block table with freed entries (behind the window of `first`) made invalid.
  std::vector<int32_t> table(int first) const {
    return kv_.within_window(table_, first, shape_.window);
  }
  std::vector<float> q_rows(int begin, int count) const {
    return {q_.begin() + int64_t{begin} * q_cols(), q_.begin() + int64_t{begin + count} * q_cols()};
  }
  GuardedMatrix outputs(Backend& b, int count) const {
    return {b, count, q_cols(), b.activation_dtype(), Margins::kAboveAndBelow};
  }

  // Tokens [begin, begin + count) as one row of a call of their own.
  std::vector<float> attend(Backend& b, int begin, int count) const {
    GuardedMatrix q(b, count, q_cols(), b.activation_dtype()), out = outputs(b, count);
    q.fill(q_rows(begin, count));
    const auto blocks = table(begin);
    const AttentionRow row{0, count, begin, blocks.data()};
    b.paged_attention(q.view(), params(), {&row, 1}, kv(), out.view());
    return out.take();
  }

  std::vector<double> expected(int begin, int count) const {
    std::vector<double> out;
    for (int p = begin; p < begin + count; ++p) {
      for (int h = 0; h < shape_.kv_heads * shape_.group; ++h) {
        const auto row = kv_.attend(table_, q_.data() + p * q_cols() + h * shape_.head_dim, p,
                                    h / shape_.group, params());
        out.insert(out.end(), row.begin(), row.end());
      }
    }
    return out;
  }

 private:
  Shape shape_;
  int length_;
  PagedKv kv_;
  std::vector<int32_t> table_;
  std::vector<float> q_;
  KvLayerView view_;
};

class AttentionTest : public BackendTest {
 protected:
  Shape random_shape() {
    Shape s;
    s.kv_heads = random_.integer(1, 3);
    s.group = random_.pick({1, 2, 3, 4, 8, 37});
    s.head_dim = on_gpu() ? random_.pick({8, 24, 64, 72, 80, 96, 128, 256})
                          : random_.pick({8, 20, 64, 72, 80, 128, 256});
    s.block_size = on_gpu() ? random_.pick({8, 16, 24, 64, 128}) : random_.pick({7, 16, 64});
    s.dtype = on_gpu() ? kv_type() : random_.pick({DType::kF32, DType::kF16, DType::kBF16});
    s.window = random_.pick({0, 0, 1, 33, 100, 600});
    s.softcap = random_.pick({0.0f, 0.0f, 5.0f});
    if (s.group > 8) s.head_dim = 8;
    return s;
  }
  // On the GPU the weights of the values are rounded to the element too.
  double tolerance() const { return on_gpu() ? of_element(6e-3) : is_reference() ? 1e-6 : 5e-6; }
};
class AttentionCpuTest : public AttentionTest {};

TEST_P(AttentionTest, MatchesFloat64) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(24); ++round) {
    const Shape shape = random_shape();
    SCOPED_TRACE(describe(shape));
    const TestSequence sequence(b, random_, shape, random_.integer(1, round % 3 == 0 ? 1300 : 150));
    const int begin = random_.integer(0, sequence.length() - 1);
    const int count = random_.integer(
        1, std::min(on_gpu() && round % 4 == 0 ? 300 : 40, sequence.length() - begin));
    SCOPED_TRACE(fmt::format("{} tokens at {} of {}", count, begin, sequence.length()));
    expect_close(relative_l2(sequence.attend(b, begin, count), sequence.expected(begin, count)),
                 tolerance());
  }
}

// The same bits for a prompt whole, in any chunks, token by token, and with any threads.
TEST_P(AttentionCpuTest, ChunksAndThreadsChangeNothing) {
  Backend* backends[] = {&backend(1), &backend(2), &backend(3), &backend(5)};
  for (int round = 0; round < 6; ++round) {
    Shape shape = random_shape();
    if (is_reference()) shape.head_dim = 20;
    if (shape.group > 8) shape.kv_heads = 1;
    SCOPED_TRACE(describe(shape));
    const TestSequence sequence(*backends[0], random_, shape,
                                round < 2 ? 1100 : random_.integer(2, 200));
    const int length = sequence.length();
    // The last tokens only, where whole is long.
    const int from = std::max(0, length - 130);
    const auto whole = sequence.attend(*backends[0], from, length - from);
    std::vector<float> chunked, single;
    for (int p = from; p < length;) {
      const int count = std::min(length - p, random_.integer(1, 50));
      const auto part = sequence.attend(*backends[random_.integer(0, 3)], p, count);
      chunked.insert(chunked.end(), part.begin(), part.end());
      p += count;
    }
    ASSERT_TRUE(same_bits(whole, chunked));
    for (int p = from; p < length; ++p) {
      const auto part = sequence.attend(*backends[p % 4], p, 1);
      single.insert(single.end(), part.begin(), part.end());
    }
    ASSERT_TRUE(same_bits(whole, single));
  }
}

// Rows of several lengths in one call: each as if alone. (On the GPU within the tolerance: other
// tiles, other order of the sums.)
TEST_P(AttentionTest, BatchesChangeNothing) {
  Backend& b = backend(2);
  Backend& alone = on_gpu() ? b : backend(1);
  Shape shape = random_shape();
  shape.group = random_.pick({1, 3, 4});
  shape.head_dim = random_.pick({64, 80});
  SCOPED_TRACE(describe(shape));
  // One KV memory: a long sequence cut at several places stands for sequences of its lengths.
  const TestSequence sequence(b, random_, shape, is_reference() ? 300 : 1400);
  const int rows = 33;
  std::vector<AttentionRow> plan;
  std::vector<std::vector<int32_t>> tables;
  std::vector<float> q, want;
  std::vector<double> exact;
  int tokens = 0;
  tables.reserve(rows);
  for (int r = 0; r < rows; ++r) {
    const int position = random_.integer(0, sequence.length() - 1);
    const int count =
        r % 4 == 0 ? random_.integer(1, std::min(20, sequence.length() - position)) : 1;
    tables.push_back(sequence.table(position));
    plan.push_back({tokens, count, position, tables.back().data()});
    const auto part = sequence.q_rows(position, count);
    q.insert(q.end(), part.begin(), part.end());
    const auto result = sequence.attend(alone, position, count);
    want.insert(want.end(), result.begin(), result.end());
    if (on_gpu()) {
      const auto row = sequence.expected(position, count);
      exact.insert(exact.end(), row.begin(), row.end());
    }
    tokens += count;
  }
  GuardedMatrix in(b, tokens, sequence.q_cols(), activation()), out = sequence.outputs(b, tokens);
  in.fill(q);
  b.paged_attention(in.view(), sequence.params(), plan, sequence.kv(), out.view());
  const auto got = out.take();
  if (!on_gpu()) {
    EXPECT_TRUE(same_bits(got, want));
    return;
  }
  expect_close(relative_l2(got, exact), tolerance());
  expect_close(relative_l2(want, exact), tolerance());
}

// Scores far apart and very large: no overflow, and the largest takes all.
TEST_P(AttentionTest, ExtremeScores) {
  Backend& b = backend(1);
  Shape shape;
  shape.head_dim = 64;
  if (on_gpu()) shape.dtype = kv_type();
  const TestSequence sequence(b, random_, shape, 200);
  GuardedMatrix q(b, 1, 64, activation()), out = sequence.outputs(b, 1);
  // On the GPU logits are scaled and have the largest taken off in one multiply-add, whose rounding
  // overflows a power of two from about 1e9 on. f16 ends at 65504.
  for (const float scale : {0.0f, is_f16() ? 1e2f : 1e4f,
                            is_f16()   ? 1e4f
                            : on_gpu() ? 1e7f
                                       : 1e30f}) {
    SCOPED_TRACE(scale);
    auto values = sequence.q_rows(199, 1);
    for (float& v : values) v *= scale;
    q.fill(rounded(values, activation()));
    const auto blocks = sequence.table(199);
    const AttentionRow row{0, 1, 199, blocks.data()};
    b.paged_attention(q.view(), sequence.params(), {&row, 1}, sequence.kv(), out.view());
    for (const float v : out.take()) EXPECT_TRUE(std::isfinite(v));
  }
}

TRIREME_ON_CPU(AttentionTest);
TRIREME_ON_GPU(AttentionTest);
TRIREME_ON_CPU(AttentionCpuTest);

}  // namespace
}  // namespace trireme::testing
