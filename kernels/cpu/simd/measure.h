// Loops that do nothing but read, or multiply: the limits of kernels/limits.h.
#pragma once

#include "kernels/cpu/ops.h"

namespace {

// Reads all of data, 64 bytes at a time; returns something that depends on all of it.
uint64_t read_stream(const std::byte* data, int64_t bytes) {
  V::I acc[4] = {V::zero_i(), V::zero_i(), V::zero_i(), V::zero_i()};
  constexpr int kBytes = 4 * V::kWidth;
  for (int64_t i = 0; i + 4 * kBytes <= bytes; i += 4 * kBytes) {
    for (int j = 0; j < 4 * kBytes; j += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(data) + i + 3072 + j, _MM_HINT_T0);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) acc[j] = V::or_i(acc[j], V::load_i(data + i + j * kBytes));
  }
  const V::I all = V::or_i(V::or_i(acc[0], acc[1]), V::or_i(acc[2], acc[3]));
  return static_cast<uint64_t>(static_cast<uint32_t>(V::sum_i(all)));
}

// Twelve independent chains of fma; returns the floating-point operations done.
double fma_operations(int64_t repeats) {
  V::F acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = V::set(static_cast<float>(i));
  V::F a = V::set(0.999f), b = V::set(0.001f);
  for (int64_t r = 0; r < repeats; ++r) {
    asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = V::fma(acc[i], a, b);
  }
  for (int i = 0; i < 12; ++i) asm volatile("" : : "v"(acc[i]));
  return 2.0 * 12 * V::kWidth * static_cast<double>(repeats);
}

// The same with 8-bit dot products.
double int8_operations(int64_t repeats) {
  V::I acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = V::zero_i();
  V::I w = V::set_i(0x01020304);
  alignas(4) int8_t four[4] = {1, 2, 3, 4};
  for (int64_t r = 0; r < repeats; ++r) {
    asm volatile("" : "+v"(w));
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = V::dot(acc[i], w, four);
  }
  for (int i = 0; i < 12; ++i) asm volatile("" : : "v"(acc[i]));
  return 2.0 * 12 * 4 * V::kWidth * static_cast<double>(repeats);
}

}  // namespace
