// Norms, activations, rotations and conversions of one row, and the layout of activations. Sums run
// in one fixed order: four accumulators of kWidth lanes by position, then the lanes.
#pragma once

#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd/vector_math.h"

namespace {

void rms_norm(const float* x, const float* weight, float eps, int64_t count, float* out) {
  V::F acc[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  for_lanes(count, [&](int64_t i, int64_t n) {
    const V::F v = load_n(x + i, n);
    V::F& a = acc[i / V::kWidth % 4];
    a = V::fma(v, v, a);
  });
  const float squares = V::sum(V::add(V::add(acc[0], acc[1]), V::add(acc[2], acc[3])));
  const V::F inverse = V::set(1.0f / __builtin_sqrtf(squares / static_cast<float>(count) + eps));
  for_lanes(count, [&](int64_t i, int64_t n) {
    store_n(out + i, V::mul(V::mul(load_n(x + i, n), inverse), load_n(weight + i, n)), n);
  });
}

void add(float* x, const float* delta, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) {
    store_n(x + i, V::add(load_n(x + i, n), load_n(delta + i, n)), n);
  });
}

// x / (1 + e^-x) * up
void silu_mul(const float* gate, const float* up, int64_t count, float* out) {
  const V::F one = V::set(1.0f);
  for_lanes(count, [&](int64_t i, int64_t n) {
    const V::F x = load_n(gate + i, n);
    const V::F e = exp_lanes(V::sub(V::zero(), x));
    store_n(out + i, V::mul(V::div(x, V::add(one, e)), load_n(up + i, n)), n);
  });
}

// 0.5 x (1 + tanh u) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3)
void gelu_tanh_mul(const float* gate, const float* up, int64_t count, float* out) {
  const V::F one = V::set(1.0f);
  for_lanes(count, [&](int64_t i, int64_t n) {
    const V::F x = load_n(gate + i, n);
    const V::F cubic = V::fma(V::mul(V::mul(x, x), V::set(0.044715f)), x, x);
    const V::F e = exp_lanes(V::mul(cubic, V::set(-2.0f * 0.79788456f)));
    store_n(out + i, V::mul(V::div(x, V::add(one, e)), load_n(up + i, n)), n);
  });
}

void rotate(float* x, const float* cos, const float* sin, int64_t half) {
  for_lanes(half, [&](int64_t i, int64_t n) {
    const V::F a = load_n(x + i, n), b = load_n(x + half + i, n);
    const V::F c = load_n(cos + i, n), s = load_n(sin + i, n);
    store_n(x + i, V::sub(V::mul(a, c), V::mul(b, s)), n);
    store_n(x + half + i, V::add(V::mul(b, c), V::mul(a, s)), n);
  });
}

void convert(const float* x, int64_t count, trireme::DType dtype, void* out) {
  auto* half = static_cast<uint16_t*>(out);
  for_lanes(count, [&](int64_t i, int64_t n) {
    const V::F v = load_n(x + i, n);
    switch (dtype) {
      case trireme::DType::kF32: store_n(static_cast<float*>(out) + i, v, n); break;
      case trireme::DType::kF16: V::store_f16(half + i, v, n); break;
      case trireme::DType::kBF16: V::store_bf16(half + i, v, n); break;
    }
  });
}

// As columns of kWidth rows, written one behind the other: lanes beyond `rows` are overwritten by
// the next column's.
void tile_f32(const float* x, int64_t stride, int rows, int64_t cols, float* out) {
  const float* end = out + cols * rows;
  for (int64_t k = 0; k < cols; k += V::kWidth) {
    const int64_t n = cols - k < V::kWidth ? cols - k : V::kWidth;
    V::F r[V::kWidth];
    for (int m = 0; m < V::kWidth; ++m) {
      r[m] = m < rows ? load_n(x + m * stride + k, n) : V::zero();
    }
    V::transpose(r);
    for (int64_t j = 0; j < n; ++j, out += rows) {
      if (end - out < V::kWidth) {
        V::store(out, r[j], rows);
      } else {
        V::store(out, r[j]);
      }
    }
  }
}

}  // namespace
