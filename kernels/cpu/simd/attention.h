// One partition of paged attention for up to 32 query rows that share a KV head.
//
// Positions go by in steps of 64, counted from position 0: K transposed (so that a score is one
// fma chain over the head's dimensions) and V widened, each once for all rows; then scores, an
// online softmax update, and the weighted sum of V. A row's arithmetic does not depend on the other
// rows: positions that it does not see have weight zero, and a step without any is skipped.
#pragma once

#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd/vector_math.h"

namespace {

using trireme::cpu::AttentionTile;
using trireme::cpu::kAttentionRows;
using trireme::cpu::kAttentionStep;

constexpr float kMasked = -__builtin_inff();
constexpr float kLowestMax = -3.0e38f;
constexpr int kStepVectors = kAttentionStep / V::kWidth;

using trireme::DType;

// Lanes d .. d + n of one position's K or V.
template <DType kType>
inline V::F load_kv(const std::byte* row, int d, int n) {
  const bool whole = n == V::kWidth;
  if constexpr (kType == DType::kF32) {
    return load_n(reinterpret_cast<const float*>(row) + d, n);
  } else if constexpr (kType == DType::kF16) {
    return whole ? V::load_f16(row + 2 * d) : V::load_f16(row + 2 * d, n);
  } else {
    return whole ? V::load_bf16(row + 2 * d) : V::load_bf16(row + 2 * d, n);
  }
}

// k[i], v[i]: position first + i, or nullptr outside [begin, end).
inline void find_rows(const AttentionTile& t, int first, int end, const std::byte** k,
                      const std::byte** v) {
  const int64_t bytes = t.head_dim * (t.dtype == DType::kF32 ? 4 : 2);
  // One division for all: positions are consecutive.
  const int begin = first < t.begin ? t.begin : first;
  int block = begin / t.block_size, slot = begin % t.block_size;
  for (int i = 0; i < kAttentionStep; ++i) {
    k[i] = v[i] = nullptr;
    if (first + i < t.begin || first + i >= end) continue;
    const int64_t offset = t.blocks[block] * t.block_stride + slot * bytes;
    k[i] = t.k + offset;
    v[i] = t.v + offset;
    if (++slot == t.block_size) {
      slot = 0;
      ++block;
    }
  }
}

// out[padded dim][64]
template <DType kType>
void transpose_keys(const AttentionTile& t, const std::byte* const* rows, float* out) {
  for (int i = 0; i < kAttentionStep; i += V::kWidth) {
    for (int d = 0; d < t.head_dim; d += V::kWidth) {
      const int n = t.head_dim - d < V::kWidth ? t.head_dim - d : V::kWidth;
      V::F block[V::kWidth];
#pragma GCC unroll 16
      for (int j = 0; j < V::kWidth; ++j) {
        block[j] = rows[i + j] == nullptr ? V::zero() : load_kv<kType>(rows[i + j], d, n);
      }
      V::transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < V::kWidth; ++j) V::store(out + (d + j) * kAttentionStep + i, block[j]);
    }
  }
}

// out[64][padded]
template <DType kType>
void widen_values(const AttentionTile& t, const std::byte* const* rows, int padded, float* out) {
  for (int i = 0; i < kAttentionStep; ++i) {
    for (int d = 0; d < padded; d += V::kWidth) {
      const int left = t.head_dim - d;
      const int n = left < V::kWidth ? left : V::kWidth;
      const V::F v = rows[i] == nullptr || n <= 0 ? V::zero() : load_kv<kType>(rows[i], d, n);
      V::store(out + i * padded + d, v);
    }
  }
}

// Pages of KV are no stream that hardware would prefetch: each step asks for the next one's rows.
template <DType kType>
inline void prefetch_kv(const std::byte* row, int d) {
  constexpr int kBytes = kType == DType::kF32 ? 4 : 2;
  if (row == nullptr || d * kBytes % 64 != 0) return;
  _mm_prefetch(reinterpret_cast<const char*>(row) + d * kBytes, _MM_HINT_T1);
}

// Few query rows (decode): the same arithmetic without the copies. Scores of `Rows` rows straight
// from the transposed registers.
template <DType kType, int Rows>
void direct_scores(const AttentionTile& t, const std::byte* const* rows,
                   const std::byte* const* next, const float* q, float* scores) {
  for (int i = 0; i < kAttentionStep; i += V::kWidth) {
    V::F acc[Rows];
    for (int r = 0; r < Rows; ++r) acc[r] = V::zero();
    for (int d = 0; d < t.head_dim; d += V::kWidth) {
      const int n = t.head_dim - d < V::kWidth ? t.head_dim - d : V::kWidth;
      V::F block[V::kWidth];
#pragma GCC unroll 16
      for (int j = 0; j < V::kWidth; ++j) {
        prefetch_kv<kType>(next[i + j], d);
        block[j] = rows[i + j] == nullptr ? V::zero() : load_kv<kType>(rows[i + j], d, n);
      }
      V::transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < V::kWidth; ++j) {
        if (j >= n) break;
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          acc[r] = V::fma(V::set(q[r * t.head_dim + d + j]), block[j], acc[r]);
        }
      }
    }
    for (int r = 0; r < Rows; ++r) V::store(scores + r * kAttentionStep + i, acc[r]);
  }
}

// out[Rows][Vectors] += weights[Rows][count] V[count][d ..], V as it lies in the cache.
template <DType kType, int Rows, int Vectors>
void direct_block(const AttentionTile& t, const std::byte* const* rows,
                  const std::byte* const* next, int count, const float* weights, int d, int padded,
                  float* out) {
  V::F acc[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int n = 0; n < Vectors; ++n) acc[r][n] = V::load(out + r * padded + d + n * V::kWidth);
  }
  for (int i = 0; i < count; ++i) {
    V::F v[Vectors];
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) {
      const int at = d + n * V::kWidth, left = t.head_dim - at;
      prefetch_kv<kType>(next[i], at);
      v[n] = rows[i] == nullptr || left <= 0
                 ? V::zero()
                 : load_kv<kType>(rows[i], at, left < V::kWidth ? left : V::kWidth);
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const V::F w = V::set(weights[r * kAttentionStep + i]);
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; ++n) acc[r][n] = V::fma(w, v[n], acc[r][n]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int n = 0; n < Vectors; ++n) V::store(out + r * padded + d + n * V::kWidth, acc[r][n]);
  }
}

template <DType kType, int Rows>
void direct_values(const AttentionTile& t, const std::byte* const* rows,
                   const std::byte* const* next, int count, const float* weights, int padded,
                   float* out) {
  int d = 0;
  for (; d + V::kGemmVectors * V::kWidth <= padded; d += V::kGemmVectors * V::kWidth) {
    direct_block<kType, Rows, V::kGemmVectors>(t, rows, next, count, weights, d, padded, out);
  }
  for (; d < padded; d += V::kWidth) {
    direct_block<kType, Rows, 1>(t, rows, next, count, weights, d, padded, out);
  }
}

constexpr int kDirectRows = V::kWidth == 16 ? 8 : 4;

// Calls with<Rows>() for 1 <= rows <= kDirectRows.
template <typename With>
inline void with_rows(int rows, With with) {
  switch (rows) {
    case 1: return with.template operator()<1>();
    case 2: return with.template operator()<2>();
    case 3: return with.template operator()<3>();
    case 4: return with.template operator()<4>();
    case 5: return with.template operator()<5>();
    case 6: return with.template operator()<6>();
    case 7: return with.template operator()<7>();
    default: return with.template operator()<8>();
  }
}

// c[Rows][Vectors] (+)= a[Rows][depth] b[depth][Vectors]; each sum is one fma chain over depth.
template <int Rows, int Vectors>
void gemm_block(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int depth,
                float* c, int64_t c_stride, bool accumulate) {
  V::F acc[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int n = 0; n < Vectors; ++n) {
      acc[r][n] = accumulate ? V::load(c + r * c_stride + n * V::kWidth) : V::zero();
    }
  }
  for (int k = 0; k < depth; ++k, b += b_stride) {
    V::F bv[Vectors];
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) bv[n] = V::load(b + n * V::kWidth);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const V::F av = V::set(a[r * a_stride + k]);
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; ++n) acc[r][n] = V::fma(av, bv[n], acc[r][n]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int n = 0; n < Vectors; ++n) V::store(c + r * c_stride + n * V::kWidth, acc[r][n]);
  }
}

template <int Rows>
void gemm_rows(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int depth,
               float* c, int64_t c_stride, int vectors, bool accumulate) {
  int n = 0;
  for (; n + V::kGemmVectors <= vectors; n += V::kGemmVectors) {
    gemm_block<Rows, V::kGemmVectors>(a, a_stride, b + n * V::kWidth, b_stride, depth,
                                      c + n * V::kWidth, c_stride, accumulate);
  }
  for (; n < vectors; ++n) {
    gemm_block<Rows, 1>(a, a_stride, b + n * V::kWidth, b_stride, depth, c + n * V::kWidth,
                        c_stride, accumulate);
  }
}

inline void gemm(int rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                 int depth, float* c, int64_t c_stride, int vectors, bool accumulate) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) {
    gemm_rows<4>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride, c_stride,
                 vectors, accumulate);
  }
  a += r * a_stride;
  c += r * c_stride;
  if (rows - r == 3) {
    gemm_rows<3>(a, a_stride, b, b_stride, depth, c, c_stride, vectors, accumulate);
  } else if (rows - r == 2) {
    gemm_rows<2>(a, a_stride, b, b_stride, depth, c, c_stride, vectors, accumulate);
  } else if (rows - r == 1) {
    gemm_rows<1>(a, a_stride, b, b_stride, depth, c, c_stride, vectors, accumulate);
  }
}

// cap tanh(s / cap) = cap (1 - 2 / (1 + e^(2 s / cap)))
inline V::F cap_lanes(V::F s, float cap) {
  const V::F one = V::set(1.0f);
  const V::F e = exp_lanes(V::mul(s, V::set(2.0f / cap)));
  return V::mul(V::set(cap), V::sub(one, V::div(V::set(2.0f), V::add(one, e))));
}

// scores[64] of row r at positions first..: to weights; rescales the row's sums and output.
inline void softmax_step(const AttentionTile& t, int r, int first, int padded, float* scores,
                         float* sums) {
  V::F s[kStepVectors];
  const int position = t.row_position[r];
  const int before = t.window > 0 ? position - t.window : -1;
  const bool all = first > before && first + kAttentionStep - 1 <= position;
  V::F top = V::set(kMasked);
  for (int n = 0; n < kStepVectors; ++n) {
    s[n] = V::load(scores + n * V::kWidth);
    if (t.softcap > 0.0f) s[n] = cap_lanes(s[n], t.softcap);
    if (!all) {
      s[n] = V::select_between(first + n * V::kWidth, before, position, s[n], V::set(kMasked));
    }
    top = V::max(top, s[n]);
  }
  const float step_max = V::max_lane(top);
  const float old_max = t.max[r];
  const float new_max = step_max > old_max ? step_max : old_max;
  V::F sum = V::load(sums);
  if (new_max != old_max) {
    float lanes[V::kWidth];
    V::store(lanes, exp_lanes(V::set(old_max - new_max)));
    sum = V::mul(sum, V::set(lanes[0]));
    blend(t.out + r * padded, lanes[0], nullptr, 0.0f, padded);
    t.max[r] = new_max;
  }
  for (int n = 0; n < kStepVectors; ++n) {
    const V::F p = exp_lanes(V::sub(s[n], V::set(new_max)));
    V::store(scores + n * V::kWidth, p);
    sum = V::add(sum, p);
  }
  V::store(sums, sum);
}

template <DType kType>
void attend_typed(const AttentionTile& t) {
  const int padded = trireme::cpu::padded_dim(t.head_dim);
  float* keys = t.scratch;
  float* values = keys + padded * kAttentionStep;
  float* scores = values + padded * kAttentionStep;
  alignas(64) float sums[kAttentionRows][V::kWidth];
  for (int r = 0; r < t.rows; ++r) {
    t.max[r] = kLowestMax;
    V::store(sums[r], V::zero());
  }
  for (int i = 0; i < t.rows * padded; i += V::kWidth) V::store(t.out + i, V::zero());

  for (int first = t.begin / kAttentionStep * kAttentionStep; first < t.end;
       first += kAttentionStep) {
    const int count = (t.end - first < kAttentionStep) ? t.end - first : kAttentionStep;
    int row = 0;  // the rows before it end before this step
    while (row < t.rows && t.row_position[row] < first) ++row;
    if (row == t.rows) continue;
    const std::byte* k_rows[kAttentionStep];
    const std::byte* v_rows[kAttentionStep];
    const std::byte* k_next[kAttentionStep];
    const std::byte* v_next[kAttentionStep];
    find_rows(t, first, t.end, k_rows, v_rows);
    find_rows(t, first + kAttentionStep, t.known, k_next, v_next);
    const int active = t.rows - row;
    const float* q = t.q + row * t.head_dim;
    float* weights = scores + row * kAttentionStep;
    float* out = t.out + row * padded;
    const bool direct = active <= kDirectRows;
    if (direct) {
      with_rows(active,
                [&]<int kRows>() { direct_scores<kType, kRows>(t, k_rows, k_next, q, weights); });
    } else {
      for (int i = 0; i < kAttentionStep; ++i) {
        for (int d = 0; d < t.head_dim; d += V::kWidth) {
          prefetch_kv<kType>(k_next[i], d);
          prefetch_kv<kType>(v_next[i], d);
        }
      }
      transpose_keys<kType>(t, k_rows, keys);
      gemm(active, q, t.head_dim, keys, kAttentionStep, t.head_dim, weights, kAttentionStep,
           kStepVectors, false);
    }
    for (int r = row; r < t.rows; ++r) {
      softmax_step(t, r, first, padded, scores + r * kAttentionStep, sums[r]);
    }
    if (direct) {
      for (int r = 0; r < active; r += 4) {
        with_rows(active - r < 4 ? active - r : 4, [&]<int kRows>() {
          if constexpr (kRows <= 4) {
            direct_values<kType, kRows>(t, v_rows, v_next, count, weights + r * kAttentionStep,
                                        padded, out + r * padded);
          }
        });
      }
    } else {
      widen_values<kType>(t, v_rows, padded, values);
      gemm(active, weights, kAttentionStep, values, padded, count, out, padded, padded / V::kWidth,
           true);
    }
  }
  for (int r = 0; r < t.rows; ++r) t.sum[r] = V::sum(V::load(sums[r]));
}

void attend(const AttentionTile& t) {
  switch (t.dtype) {
    case DType::kF32: return attend_typed<DType::kF32>(t);
    case DType::kF16: return attend_typed<DType::kF16>(t);
    case DType::kBF16: return attend_typed<DType::kBF16>(t);
  }
}

}  // namespace
