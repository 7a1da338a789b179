// A paged KV cache of one layer under test, and attention over it in float64.
#pragma once

#include "tests/kernels/testing.h"

namespace trireme::testing {

struct KvShape {
  int kv_heads = 1;
  int head_dim = 64;
  int block_size = 16;
  DType dtype = DType::kF32;
};

// Blocks handed out in random order; all that is not put is poison (NaN), on the host and, after
// place(), in the backend's memory.
class PagedKv {
 public:
  PagedKv(Random& random, const KvShape& shape, int blocks) : shape_(shape), blocks_(blocks) {
    const auto bytes = static_cast<size_t>(blocks) * block_elements() * size_of(shape.dtype);
    k_.assign(bytes, kPoison);
    v_.assign(bytes, kPoison);
    for (int i = 0; i < blocks; ++i) free_.push_back(i);
    std::shuffle(free_.begin(), free_.end(), random.engine());
  }
  // Blocks for positions [0, length).
  std::vector<int32_t> table(int length) {
    const auto count = static_cast<size_t>((length + shape_.block_size - 1) / shape_.block_size);
    EXPECT_LE(count, free_.size());
    std::vector<int32_t> table(free_.end() - static_cast<int64_t>(count), free_.end());
    free_.resize(free_.size() - count);
    return table;
  }
  // The table of a row that begins at `first`: entries behind its window were freed.
  std::vector<int32_t> within_window(std::vector<int32_t> table, int first, int window) const {
    for (int b = 0; window > 0 && (b + 1) * shape_.block_size <= first - window + 1; ++b) {
      table[static_cast<size_t>(b)] = -1000000;
    }
    return table;
  }

  size_t index(const std::vector<int32_t>& table, int position, int head, int dim) const {
    const int64_t block = table[static_cast<size_t>(position / shape_.block_size)];
    return static_cast<size_t>(
        ((block * shape_.kv_heads + head) * shape_.block_size + position % shape_.block_size) *
            shape_.head_dim +
        dim);
  }
  // Random keys and values at one position.
  void put_random(Random& random, const std::vector<int32_t>& table, int position) {
    for (int h = 0; h < shape_.kv_heads; ++h) {
      const size_t at = index(table, position, h, 0);
      for (size_t d = 0; d < static_cast<size_t>(shape_.head_dim); ++d) {
        put_element(k_.data(), shape_.dtype, at + d, random.normal());
        put_element(v_.data(), shape_.dtype, at + d, random.normal());
      }
    }
  }
  void put_k(size_t i, float value) { put_element(k_.data(), shape_.dtype, i, value); }
  void put_v(size_t i, float value) { put_element(v_.data(), shape_.dtype, i, value); }
  float k(size_t i) const { return get_element(k_.data(), shape_.dtype, i); }
  float v(size_t i) const { return get_element(v_.data(), shape_.dtype, i); }
  const std::vector<std::byte>& k_bytes() const { return k_; }
  const std::vector<std::byte>& v_bytes() const { return v_; }

  // Copies it to the backend.
  KvLayerView place(Backend& b) {
    placed_k_ = upload_bytes(b, k_);
    placed_v_ = upload_bytes(b, v_);
    return {placed_k_.data(), placed_v_.data(),  shape_.dtype,    shape_.kv_heads,
            shape_.head_dim,  shape_.block_size, int64_t{blocks_}};
  }
  // What the backend's copy is by now.
  PagedKv fetch(Backend& b) const {
    PagedKv now(shape_, blocks_);
    now.k_ = download_bytes(b, placed_k_);
    now.v_ = download_bytes(b, placed_v_);
    return now;
  }

  // Attention of the query at `position` (q[head_dim], head `kv_head`), in float64.
  std::vector<double> attend(const std::vector<int32_t>& table, const float* q, int position,
                             int kv_head, const AttentionParams& params) const {
    const int low = params.window > 0 ? std::max(0, position - params.window + 1) : 0;
    const auto dims = static_cast<size_t>(shape_.head_dim);
    std::vector<double> scores;
    double top = -INFINITY, total = 0;
    for (int j = low; j <= position; ++j) {
      const size_t at = index(table, j, kv_head, 0);
      double s = 0;
      for (size_t d = 0; d < dims; ++d) s += static_cast<double>(q[d]) * k(at + d);
      s *= static_cast<double>(params.scale);
      const double cap = static_cast<double>(params.softcap);
      if (cap > 0) s = cap * std::tanh(s / cap);
      scores.push_back(s);
      top = std::max(top, s);
    }
    std::vector<double> out(dims, 0.0);
    for (double& s : scores) total += s = std::exp(s - top);
    for (int j = low; j <= position; ++j) {
      const double w = scores[static_cast<size_t>(j - low)] / total;
      const size_t at = index(table, j, kv_head, 0);
      for (size_t d = 0; d < dims; ++d) out[d] += w * v(at + d);
    }
    return out;
  }

 private:
  PagedKv(const KvShape& shape, int blocks) : shape_(shape), blocks_(blocks) {}
  size_t block_elements() const {
    return static_cast<size_t>(shape_.kv_heads) * static_cast<size_t>(shape_.block_size) *
           static_cast<size_t>(shape_.head_dim);
  }

  KvShape shape_;
  int blocks_;
  std::vector<std::byte> k_, v_;
  std::vector<int32_t> free_;
  Buffer placed_k_, placed_v_;
};

// What prepare_qkv does to one head of q or k, in float64 but for the angle, which is a float32
// product by definition. norm may be null.
inline std::vector<double> expected_head(const float* x, int dim, int rotary, float magnitude,
                                         const float* norm, double eps,
                                         const std::vector<float>& inv_freq, int position) {
  std::vector<double> v(x, x + dim);
  if (norm != nullptr) {
    double squares = 0;
    for (const double e : v) squares += e * e;
    const double root = std::sqrt(squares / dim + eps);
    for (int i = 0; i < dim; ++i) v[static_cast<size_t>(i)] *= norm[i] / root;
  }
  const auto half = static_cast<size_t>(rotary / 2);
  for (size_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(position) * inv_freq[i];
    const double c = std::cos(static_cast<double>(angle)) * magnitude;
    const double s = std::sin(static_cast<double>(angle)) * magnitude;
    const double a = v[i], b = v[half + i];
    v[i] = a * c - b * s;
    v[half + i] = b * c + a * s;
  }
  return v;
}

inline std::vector<float> inverse_frequencies(int rotary) {
  std::vector<float> values;
  for (int i = 0; i < rotary / 2; ++i) {
    values.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / static_cast<double>(rotary))));
  }
  return values;
}

}  // namespace trireme::testing
