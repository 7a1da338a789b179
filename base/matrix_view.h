// A non-owning row-major matrix: what ops take and give.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace trireme {

// `data` points at row 0; row i begins `i * stride` elements later; stride >= cols.
struct MatrixView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  float* f32(int64_t row = 0) const { return static_cast<float*>(data) + row * stride; }
  MatrixView row_range(int64_t begin, int64_t count) const {
    auto* bytes = static_cast<std::byte*>(data);
    return {bytes + static_cast<size_t>(begin * stride) * size_of(dtype), dtype, count, cols, stride};
  }
  MatrixView col_range(int64_t begin, int64_t count) const {
    auto* bytes = static_cast<std::byte*>(data);
    return {bytes + static_cast<size_t>(begin) * size_of(dtype), dtype, rows, count, stride};
  }
};

inline MatrixView matrix_f32(float* data, int64_t rows, int64_t cols) {
  return {data, DType::kF32, rows, cols, cols};
}

}  // namespace trireme
