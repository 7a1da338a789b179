// The exponential, and loops over rows whose length is no multiple of the vector.
#pragma once

#include <cstdint>

namespace {

// e^x to about 1e-7 (relative); 0 below -87.3 (also for -infinity), infinity above 88.7.
// x = n ln 2 + r; e^r by its Taylor polynomial of degree 7 on |r| <= ln 2 / 2.
inline V::F exp_lanes(V::F x) {
  const V::F low = V::set(-87.33f), high = V::set(89.0f);
  const V::F given = x;
  x = V::select_less(x, low, low, V::select_less(high, x, high, x));
  const V::F n = V::round(V::mul(x, V::set(1.44269504f)));
  V::F r = V::fma(n, V::set(-0.693359375f), x);
  r = V::fma(n, V::set(2.12194440e-4f), r);
  V::F p = V::set(1.0f / 5040);
  p = V::fma(p, r, V::set(1.0f / 720));
  p = V::fma(p, r, V::set(1.0f / 120));
  p = V::fma(p, r, V::set(1.0f / 24));
  p = V::fma(p, r, V::set(1.0f / 6));
  p = V::fma(p, r, V::set(0.5f));
  p = V::fma(p, r, V::set(1.0f));
  p = V::fma(p, r, V::set(1.0f));
  return V::select_less(given, low, V::zero(), V::scale2(p, n));
}

// Calls each(i, lanes) over [0, count) in steps of kWidth; lanes < kWidth only in the last.
template <typename Each>
inline void for_lanes(int64_t count, Each each) {
  int64_t i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) each(i, int64_t{V::kWidth});
  if (i < count) each(i, count - i);
}

inline V::F load_n(const float* p, int64_t n) {
  return n == V::kWidth ? V::load(p) : V::load(p, n);
}
inline void store_n(float* p, V::F x, int64_t n) {
  if (n == V::kWidth) {
    V::store(p, x);
  } else {
    V::store(p, x, n);
  }
}

// out = out * scale + x * x_scale; out *= scale when x is nullptr.
inline void blend(float* out, float scale, const float* x, float x_scale, int64_t count) {
  const V::F a = V::set(scale), b = V::set(x_scale);
  for_lanes(count, [&](int64_t i, int64_t n) {
    V::F v = V::mul(load_n(out + i, n), a);
    if (x != nullptr) v = V::fma(load_n(x + i, n), b, v);
    store_n(out + i, v, n);
  });
}

}  // namespace
