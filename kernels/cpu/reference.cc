// Every op in plain C++: what the vector paths are tested against, and the path of machines that
// have none. Sums are in double, in order.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/packing.h"

namespace trireme::cpu {
namespace {

void rms_norm(const float* x, const float* weight, float eps, int64_t count, float* out) {
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double mean = squares / static_cast<double>(count);
  const auto inverse = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(eps)));
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] * inverse * weight[i];
}

void add(float* x, const float* delta, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += delta[i];
}

void silu_mul(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void gelu_tanh_mul(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const double x = gate[i];
    const double u = 0.7978845608028654 * (x + 0.044715 * x * x * x);
    out[i] = static_cast<float>(0.5 * x * (1.0 + std::tanh(u)) * static_cast<double>(up[i]));
  }
}

void rotate(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cos[i] - b * sin[i];
    x[half + i] = b * cos[i] + a * sin[i];
  }
}

void convert(const float* x, int64_t count, DType dtype, void* out) {
  if (dtype == DType::kF32) {
    std::copy_n(x, count, static_cast<float*>(out));
    return;
  }
  auto* to = static_cast<uint16_t*>(out);
  for (int64_t i = 0; i < count; ++i) {
    to[i] = dtype == DType::kF16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
  }
}

void tile_f32(const float* x, int64_t stride, int rows, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; ++k) {
    for (int m = 0; m < rows; ++m) out[k * rows + m] = x[m * stride + k];
  }
}

constexpr int kTile = 8;

// Panels of one row.
template <QuantFormat kFormat>
void linear_tile(const LinearTile& t) {
  const PackedBlock q = packed_block(kFormat);
  double sums[kTile];
  for (int m = 0; m < t.rows; ++m) sums[m] = t.first ? 0.0 : static_cast<double>(t.acc[m]);
  const auto* x = reinterpret_cast<const float*>(t.x);
  std::byte block[256];
  float w[256];
  for (int64_t b = 0; b < t.blocks; ++b) {
    unpack_row(t.panel + b * q.bytes, kFormat, q.elements, 0, 1, block);
    dequantize(kFormat, block, q.elements, w);
    for (int i = 0; i < q.elements; ++i, x += t.rows) {
      for (int m = 0; m < t.rows; ++m) sums[m] += static_cast<double>(w[i]) * x[m];
    }
  }
  for (int m = 0; m < t.rows; ++m) t.acc[m] = static_cast<float>(sums[m]);
}

LinearKernel linear(QuantFormat format) {
  const auto kernel = [](auto run) { return LinearKernel{1, kTile, TileKind::kF32, run}; };
  switch (format) {
    case QuantFormat::kF32: return kernel(linear_tile<QuantFormat::kF32>);
    case QuantFormat::kF16: return kernel(linear_tile<QuantFormat::kF16>);
    case QuantFormat::kBF16: return kernel(linear_tile<QuantFormat::kBF16>);
    case QuantFormat::kQ8_0: return kernel(linear_tile<QuantFormat::kQ8_0>);
    case QuantFormat::kQ4_0: return kernel(linear_tile<QuantFormat::kQ4_0>);
    case QuantFormat::kQ4_1: return kernel(linear_tile<QuantFormat::kQ4_1>);
    case QuantFormat::kQ5_0: return kernel(linear_tile<QuantFormat::kQ5_0>);
    case QuantFormat::kQ5_1: return kernel(linear_tile<QuantFormat::kQ5_1>);
    case QuantFormat::kIQ4_NL: return kernel(linear_tile<QuantFormat::kIQ4_NL>);
    case QuantFormat::kQ2_K: return kernel(linear_tile<QuantFormat::kQ2_K>);
    case QuantFormat::kQ3_K: return kernel(linear_tile<QuantFormat::kQ3_K>);
    case QuantFormat::kQ4_K: return kernel(linear_tile<QuantFormat::kQ4_K>);
    case QuantFormat::kQ5_K: return kernel(linear_tile<QuantFormat::kQ5_K>);
    case QuantFormat::kQ6_K: return kernel(linear_tile<QuantFormat::kQ6_K>);
    case QuantFormat::kI4x32: return kernel(linear_tile<QuantFormat::kI4x32>);
    case QuantFormat::kI4x128: return kernel(linear_tile<QuantFormat::kI4x128>);
    case QuantFormat::kI8x32: return kernel(linear_tile<QuantFormat::kI8x32>);
    case QuantFormat::kI8x128: return kernel(linear_tile<QuantFormat::kI8x128>);
    case QuantFormat::kF8x32: return kernel(linear_tile<QuantFormat::kF8x32>);
    case QuantFormat::kF8x128: return kernel(linear_tile<QuantFormat::kF8x128>);
  }
  return {};
}

void blend(float* out, float scale, const float* x, float x_scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = out[i] * scale + (x != nullptr ? x[i] * x_scale : 0.0f);
  }
}

uint64_t read(const std::byte* data, int64_t bytes) {
  uint64_t all = 0;
  for (int64_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, data + i, 8);
    all |= word;
  }
  return all;
}

double flops(int64_t repeats, TileKind /*tile*/) {
  constexpr int kChains = 8;
  float acc[kChains] = {};
  for (int64_t r = 0; r < repeats; ++r) {
    for (float& a : acc) a = a * 0.999f + 0.001f;
  }
  volatile float sink = 0;
  for (const float a : acc) sink = sink + a;
  return 2.0 * kChains * static_cast<double>(repeats);
}

}  // namespace

const Ops& reference_ops() {
  static const Ops ops = {"reference", rms_norm, add,     silu_mul, gelu_tanh_mul,
                          rotate,      convert,  nullptr, tile_f32, nullptr,
                          linear,      nullptr,  blend,   read,     flops};
  return ops;
}

}  // namespace trireme::cpu
