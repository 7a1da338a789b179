#include "tests/kernels/testing.h"

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

// One sequence of random q, k, v and its paged KV: blocks in random order among poisoned ones.
class TestSequence {
 public:
  TestSequence(Random& random, const Shape& shape, int length) : shape_(shape), length_(length) {
    const int blocks = (length + shape.block_size - 1) / shape.block_size;
    const int pool = blocks + 3;
    const int64_t elements = int64_t{pool} * shape.kv_heads * shape.block_size * shape.head_dim;
    const size_t bytes = static_cast<size_t>(elements) * size_of(shape.dtype);
    // All ones: NaN in every type.
    k_.assign(bytes, std::byte{0xff});
    v_.assign(bytes, std::byte{0xff});
    for (int i = 0; i < pool; ++i) table_.push_back(i);
    std::shuffle(table_.begin(), table_.end(), random.engine());
    table_.resize(static_cast<size_t>(blocks));
    q_ = random.normals(int64_t{length} * q_cols());
    for (int p = 0; p < length; ++p) {
      for (int h = 0; h < shape.kv_heads; ++h) {
        for (int d = 0; d < shape.head_dim; ++d) {
          put(k_, p, h, d, random.normal());
          put(v_, p, h, d, random.normal());
        }
      }
    }
  }

  int q_cols() const { return shape_.kv_heads * shape_.group * shape_.head_dim; }
  int length() const { return length_; }
  KvLayerView kv() {
    return {k_.data(),       v_.data(),       shape_.dtype,
            shape_.kv_heads, shape_.head_dim, shape_.block_size};
  }
  AttentionParams params() const {
    return {shape_.kv_heads * shape_.group, 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
            shape_.window, shape_.softcap};
  }
  // The block table with freed entries (behind the window of `first`) made invalid.
  std::vector<int32_t> table(int first) const {
    std::vector<int32_t> t = table_;
    for (int b = 0; shape_.window > 0 && (b + 1) * shape_.block_size <= first - shape_.window + 1;
         ++b) {
      t[static_cast<size_t>(b)] = -1000000;
    }
    return t;
  }
  std::vector<float> q_rows(int begin, int count) const {
    return {q_.begin() + int64_t{begin} * q_cols(), q_.begin() + int64_t{begin + count} * q_cols()};
  }

  // Tokens [begin, begin + count) as one row of a call of their own.
  std::vector<float> attend(Backend& b, int begin, int count) {
    GuardedMatrix q(count, q_cols()), out(count, q_cols());
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
        const auto row = expected_row(p, h);
        out.insert(out.end(), row.begin(), row.end());
      }
    }
    return out;
  }

 private:
  size_t index(int p, int h, int d) const {
    const int64_t block = table_[static_cast<size_t>(p / shape_.block_size)];
    return static_cast<size_t>(
        ((block * shape_.kv_heads + h) * shape_.block_size + p % shape_.block_size) *
            shape_.head_dim +
        d);
  }
  void put(std::vector<std::byte>& to, int p, int h, int d, float v) {
    if (shape_.dtype == DType::kF32) {
      std::memcpy(&to[index(p, h, d) * 4], &v, 4);
      return;
    }
    const uint16_t bits = shape_.dtype == DType::kF16 ? f32_to_f16(v) : f32_to_bf16(v);
    std::memcpy(&to[index(p, h, d) * 2], &bits, 2);
  }
  double get(const std::vector<std::byte>& from, int p, int h, int d) const {
    if (shape_.dtype == DType::kF32) {
      float v;
      std::memcpy(&v, &from[index(p, h, d) * 4], 4);
      return static_cast<double>(v);
    }
    uint16_t bits;
    std::memcpy(&bits, &from[index(p, h, d) * 2], 2);
    return static_cast<double>(shape_.dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits));
  }
  std::vector<double> expected_row(int p, int h) const {
    const int kv_head = h / shape_.group;
    const int low = shape_.window > 0 ? std::max(0, p - shape_.window + 1) : 0;
    std::vector<double> scores;
    double top = -INFINITY, total = 0;
    for (int j = low; j <= p; ++j) {
      double s = 0;
      for (int d = 0; d < shape_.head_dim; ++d) {
        s += static_cast<double>(q_[static_cast<size_t>(p * q_cols() + h * shape_.head_dim + d)]) *
             get(k_, j, kv_head, d);
      }
      s /= std::sqrt(static_cast<double>(shape_.head_dim));
      const double cap = static_cast<double>(shape_.softcap);
      if (cap > 0) s = cap * std::tanh(s / cap);
      scores.push_back(s);
      top = std::max(top, s);
    }
    std::vector<double> out(static_cast<size_t>(shape_.head_dim), 0.0);
    for (double& s : scores) total += s = std::exp(s - top);
    for (int j = low; j <= p; ++j) {
      const double w = scores[static_cast<size_t>(j - low)] / total;
      for (int d = 0; d < shape_.head_dim; ++d) {
        out[static_cast<size_t>(d)] += w * get(v_, j, kv_head, d);
      }
    }
    return out;
  }

  Shape shape_;
  int length_;
  std::vector<std::byte> k_, v_;
  std::vector<int32_t> table_;
  std::vector<float> q_;
};

class AttentionTest : public IsaTest {
 protected:
  Shape random_shape() {
    Shape s;
    s.kv_heads = random_.integer(1, 3);
    s.group = random_.pick({1, 2, 3, 4, 8, 37});
    s.head_dim = random_.pick({8, 20, 64, 72, 80, 128, 256});
    s.block_size = random_.pick({7, 16, 64});
    s.dtype = random_.pick({DType::kF32, DType::kF16, DType::kBF16});
    s.window = random_.pick({0, 0, 1, 33, 100, 600});
    s.softcap = random_.pick({0.0f, 0.0f, 5.0f});
    if (s.group > 8) s.head_dim = 8;
    return s;
  }
};

TEST_P(AttentionTest, MatchesFloat64) {
  Backend& b = backend(2);
  for (int round = 0; round < 20; ++round) {
    const Shape shape = random_shape();
    SCOPED_TRACE(describe(shape));
    TestSequence sequence(random_, shape, random_.integer(1, round % 3 == 0 ? 1300 : 150));
    const int begin = random_.integer(0, sequence.length() - 1);
    const int count = random_.integer(1, std::min(40, sequence.length() - begin));
    SCOPED_TRACE(fmt::format("{} tokens at {} of {}", count, begin, sequence.length()));
    EXPECT_LE(relative_l2(sequence.attend(b, begin, count), sequence.expected(begin, count)),
              is_reference() ? 1e-6 : 5e-6);
  }
}

// The same bits for a prompt whole, in any chunks, token by token, and with any threads.
TEST_P(AttentionTest, ChunksAndThreadsChangeNothing) {
  Backend* backends[] = {&backend(1), &backend(2), &backend(3), &backend(5)};
  for (int round = 0; round < 6; ++round) {
    Shape shape = random_shape();
    if (is_reference()) shape.head_dim = 20;
    if (shape.group > 8) shape.kv_heads = 1;
    SCOPED_TRACE(describe(shape));
    TestSequence sequence(random_, shape, round < 2 ? 1100 : random_.integer(2, 200));
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

// Rows of several lengths in one call: each as if alone.
TEST_P(AttentionTest, BatchesChangeNothing) {
  Backend& alone = backend(1);
  Backend& b = backend(2);
  Shape shape = random_shape();
  shape.group = random_.pick({1, 3, 4});
  shape.head_dim = random_.pick({64, 80});
  SCOPED_TRACE(describe(shape));
  // One KV memory: a long sequence cut at several places stands for sequences of its lengths.
  TestSequence sequence(random_, shape, is_reference() ? 300 : 1400);
  const int rows = 33;
  std::vector<AttentionRow> plan;
  std::vector<std::vector<int32_t>> tables;
  std::vector<float> q, want;
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
    tokens += count;
  }
  GuardedMatrix in(tokens, sequence.q_cols()), out(tokens, sequence.q_cols());
  in.fill(q);
  b.paged_attention(in.view(), sequence.params(), plan, sequence.kv(), out.view());
  EXPECT_TRUE(same_bits(out.take(), want));
}

// Scores far apart and very large: no overflow, and the largest takes all.
TEST_P(AttentionTest, ExtremeScores) {
  Backend& b = backend(1);
  Shape shape;
  shape.head_dim = 64;
  TestSequence sequence(random_, shape, 200);
  GuardedMatrix q(1, 64), out(1, 64);
  for (const float scale : {0.0f, 1e4f, 1e30f}) {
    auto values = sequence.q_rows(199, 1);
    for (float& v : values) v *= scale;
    q.fill(values);
    const auto blocks = sequence.table(199);
    const AttentionRow row{0, 1, 199, blocks.data()};
    b.paged_attention(q.view(), sequence.params(), {&row, 1}, sequence.kv(), out.view());
    for (const float v : out.take()) EXPECT_TRUE(std::isfinite(v));
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, AttentionTest, ::testing::ValuesIn(kIsas), isa_name);

}  // namespace
}  // namespace trireme::testing
