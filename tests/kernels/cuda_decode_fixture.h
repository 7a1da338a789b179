// A decode batch on the device with everything random or poisoned, and its reference in double.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/element.h"

namespace trireme::testing {

using cuda::DeviceRow;

inline int failures = 0;

inline void check_cuda(cudaError_t status, const char* what, int line) {
  if (status == cudaSuccess) return;
  std::printf("line %d: %s: %s\n", line, what, cudaGetErrorString(status));
  std::exit(2);
}
#define CHECK_CUDA(call) ::trireme::testing::check_cuda((call), #call, __LINE__)

#define EXPECT(condition, ...)                \
  do {                                        \
    if (!(condition)) {                       \
      ++::trireme::testing::failures;         \
      std::printf("FAILED %s: ", #condition); \
      std::printf(__VA_ARGS__);               \
      std::printf("\n");                      \
    }                                         \
  } while (false)

constexpr uint16_t kPoison = 0x7fc1;  // a NaN that no kernel makes
constexpr int32_t kNoBlock = 0x3fffffff;

inline uint16_t to_element(double x) { return cuda::element_bits(static_cast<float>(x)); }
inline double from_element(uint16_t x) { return cuda::element_value(x); }

// A device array and its host copy.
template <typename T>
struct Array {
  std::vector<T> host;
  T* device = nullptr;

  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { cudaFree(device); }
  void allocate(size_t count, T value) {
    host.assign(count, value);
    CHECK_CUDA(cudaMalloc(&device, std::max<size_t>(1, count) * sizeof(T)));
    upload();
  }
  void upload() {
    CHECK_CUDA(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> download() const {
    std::vector<T> copy(host.size());
    CHECK_CUDA(cudaMemcpy(copy.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
    return copy;
  }
};

struct Shape {
  int head_dim = 128;
  int kv_heads = 2;
  int group = 4;
  int block_size = 16;
  int window = 0;
  float softcap = 0.0f;
  bool norm = false;
  int rotary_dim = 0;
  float magnitude = 1.0f;
  float score_scale = 1.0f;  // times 1 / sqrt(head_dim): larger makes the softmax peaked
  int q_heads() const { return kv_heads * group; }
  std::string name() const {
    char text[200];
    std::snprintf(text, sizeof text,
                  "dim %d heads %d/%d block %d window %d softcap %g norm %d rotary %d scale %g",
                  head_dim, q_heads(), kv_heads, block_size, window, softcap, norm, rotary_dim,
                  score_scale);
    return text;
  }
};

class Batch {
 public:
  Batch(const Shape& shape, int max_rows, int max_tokens, int max_position, std::mt19937& engine)
      : s(shape), max_tokens(max_tokens), engine_(engine) {
    table_entries_ = max_position / s.block_size + 1;
    blocks = max_rows * table_entries_ + 7;
    const size_t cache = static_cast<size_t>(blocks) * s.kv_heads * s.block_size * s.head_dim;
    k_cache.allocate(cache, kPoison);
    v_cache.allocate(cache, kPoison);
    table.allocate(static_cast<size_t>(max_rows) * table_entries_ + 3, kNoBlock);
    table_begin.allocate(max_rows, 0);
    rows.allocate(max_rows, DeviceRow{});
    // Some slack at the end of each token's row; whole 16-byte units where the heads are.
    stride = (s.q_heads() + 2 * s.kv_heads) * s.head_dim + (s.head_dim % 8 == 0 ? 8 : 2);
    qkv.allocate(static_cast<size_t>(max_tokens) * stride, kPoison);
    out.allocate(static_cast<size_t>(max_tokens) * s.q_heads() * s.head_dim, kPoison);
    q_norm.allocate(s.head_dim, 0.0f);
    k_norm.allocate(s.head_dim, 0.0f);
    inv_freq.allocate(std::max(1, s.rotary_dim / 2), 0.0f);
    for (float& w : q_norm.host) w = 1.0f + 0.2f * normal();
    for (float& w : k_norm.host) w = 1.0f + 0.2f * normal();
    for (int i = 0; i < s.rotary_dim / 2; ++i) {
      inv_freq.host[i] =
          static_cast<float>(std::pow(500000.0, -2.0 * i / std::max(1, s.rotary_dim)));
    }
    q_norm.upload();
    k_norm.upload();
    inv_freq.upload();
  }

  // Rows of `counts` new tokens after `positions` cached ones, anywhere in the batch. Everything
  // not theirs is poisoned: unused blocks, slots behind the newest token, positions before the
  // window.
  void fill(const std::vector<int>& positions, const std::vector<int>& counts) {
    row_count = static_cast<int>(positions.size());
    for (auto* array : {&k_cache, &v_cache, &qkv, &out}) {
      std::fill(array->host.begin(), array->host.end(), kPoison);
    }
    std::vector<int32_t> free_blocks(blocks);
    for (int i = 0; i < blocks; ++i) free_blocks[i] = i;
    std::shuffle(free_blocks.begin(), free_blocks.end(), engine_);
    std::fill(table.host.begin(), table.host.end(), kNoBlock);
    int tokens = 0;
    for (const int c : counts) tokens += c;
    int gap = max_tokens - tokens, at = 0;
    for (int r = 0; r < row_count; ++r) {
      const int skip = gap > 0 ? static_cast<int>(engine_() % (gap + 1)) : 0;
      at += skip;
      gap -= skip;
      rows.host[r] = DeviceRow{at, counts[r], positions[r], -12345};
      table_begin.host[r] = r * table_entries_ + 2;
      const int low = first_position(positions[r]);
      for (int b = low / s.block_size; b <= (positions[r] + counts[r] - 1) / s.block_size; ++b) {
        table.host[table_begin.host[r] + b] = free_blocks.back();
        free_blocks.pop_back();
      }
      for (int p = low; p < positions[r]; ++p) {
        for (int h = 0; h < s.kv_heads; ++h) {
          for (int d = 0; d < s.head_dim; ++d) {
            k_cache.host[slot(r, p, h) + d] = to_element(normal());
            v_cache.host[slot(r, p, h) + d] = to_element(normal());
          }
        }
      }
      for (int t = at; t < at + counts[r]; ++t) {
        for (int d = 0; d < (s.q_heads() + 2 * s.kv_heads) * s.head_dim; ++d) {
          qkv.host[static_cast<size_t>(t) * stride + d] = to_element(normal());
        }
      }
      at += counts[r];
    }
    k_cache.upload();
    v_cache.upload();
    qkv.upload();
    out.upload();
    table.upload();
    table_begin.upload();
    rows.upload();
  }

  int first_position(int position) const {
    return s.window > 0 ? std::max(0, position - s.window + 1) : 0;
  }
  size_t slot(int row, int position, int head) const {
    const int64_t block = table.host[table_begin.host[row] + position / s.block_size];
    return static_cast<size_t>(
        ((block * s.kv_heads + head) * s.block_size + position % s.block_size) * s.head_dim);
  }
  int row_of(int token) const {
    for (int r = 0; r < row_count; ++r) {
      const DeviceRow& row = rows.host[r];
      if (token >= row.token_begin && token < row.token_begin + row.count) return r;
    }
    return -1;
  }

  // Head `head` of the token's q (k, v: after q's heads), normed and rotated where `norm` is given.
  std::vector<double> prepared(int token, int position, int head, const float* norm,
                               bool rope) const {
    const uint16_t* from = qkv.host.data() + static_cast<size_t>(token) * stride +
                           static_cast<size_t>(head) * s.head_dim;
    std::vector<double> x(s.head_dim);
    double squares = 0;
    for (int d = 0; d < s.head_dim; ++d) {
      x[d] = from_element(from[d]);
      squares += x[d] * x[d];
    }
    if (norm != nullptr) {
      const double inverse = 1.0 / std::sqrt(squares / s.head_dim + 1e-6);
      for (int d = 0; d < s.head_dim; ++d) x[d] *= inverse * norm[d];
    }
    const int half = rope ? s.rotary_dim / 2 : 0;
    for (int i = 0; i < half; ++i) {
      const double angle = static_cast<float>(position) * inv_freq.host[i];
      const double c = std::cos(angle) * s.magnitude, n = std::sin(angle) * s.magnitude;
      const double a = x[i], b = x[i + half];
      x[i] = a * c - b * n;
      x[i + half] = b * c + a * n;
    }
    return x;
  }
  std::vector<double> query(int token, int position, int head) const {
    return prepared(token, position, head, s.norm ? q_norm.host.data() : nullptr, true);
  }
  std::vector<double> key(int token, int position, int head) const {
    return prepared(token, position, s.q_heads() + head, s.norm ? k_norm.host.data() : nullptr,
                    true);
  }
  std::vector<double> value(int token, int head) const {
    return prepared(token, 0, s.q_heads() + s.kv_heads + head, nullptr, false);
  }

  cuda::HeadPrepare prepare() const {
    cuda::HeadPrepare p;
    if (s.norm) p.q_norm = q_norm.device;
    if (s.norm) p.k_norm = k_norm.device;
    p.norm_eps = 1e-6f;
    p.inv_freq = inv_freq.device;
    p.rotary_dim = s.rotary_dim;
    p.magnitude = s.magnitude;
    return p;
  }
  cuda::DeviceTables tables() const { return {table.device, table_begin.device}; }
  cuda::DeviceKv kv() const {
    return {k_cache.device, v_cache.device, blocks, s.kv_heads, s.head_dim, s.block_size};
  }
  uint16_t* q() const { return qkv.device; }
  uint16_t* k() const { return qkv.device + s.q_heads() * s.head_dim; }
  uint16_t* v() const { return k() + s.kv_heads * s.head_dim; }

  float normal() { return normal_(engine_); }

  Shape s;
  int max_tokens;
  int blocks = 0;
  int row_count = 0;
  int64_t stride = 0;
  Array<uint16_t> k_cache, v_cache, qkv, out;
  Array<int32_t> table, table_begin;
  Array<DeviceRow> rows;
  Array<float> q_norm, k_norm, inv_freq;

 private:
  int table_entries_ = 0;
  std::mt19937& engine_;
  std::normal_distribution<float> normal_;
};

// Whether x is y rounded to the element, or a neighbour of that: a step is at most 2^-7 of the
// value with bf16, and 2^-10 with f16.
inline bool near_element(uint16_t x, double y) {
  return std::abs(from_element(x) - y) <=
         std::abs(y) * (cuda::kElementIsF16 ? 0.001 : 0.008) + 1e-6;
}

}  // namespace trireme::testing
