// y = x Wᵀ + bias in float64, and how far a result is from it.
#pragma once

#include "tests/kernels/testing.h"

namespace trireme::testing {

// x[m, w.slice.col_count].
inline std::vector<double> expected_product(const TestWeight& w, const std::vector<float>& x,
                                            int64_t m, const std::vector<float>& bias = {}) {
  const WeightSlice& s = w.slice;
  std::vector<double> y(static_cast<size_t>(m * s.rows));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t n = 0; n < s.rows; ++n) {
      double sum = bias.empty() ? 0.0 : static_cast<double>(bias[static_cast<size_t>(n)]);
      for (int64_t k = 0; k < s.col_count; ++k) {
        sum += static_cast<double>(x[static_cast<size_t>(i * s.col_count + k)]) *
               w.values[static_cast<size_t>(n * s.cols + s.col_begin + k)];
      }
      y[static_cast<size_t>(i * s.rows + n)] = sum;
    }
  }
  return y;
}

// ||got - want|| over the length of what the sums add up, or of `want` where that is longer: a
// single output whose products cancel is no measure of the rounding of its terms.
inline double product_error(const std::vector<float>& got, const std::vector<double>& want,
                            const TestWeight& w, const std::vector<float>& x, int64_t m) {
  const WeightSlice& s = w.slice;
  double products = 0, length = 0, difference = 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t n = 0; n < s.rows; ++n) {
      for (int64_t k = 0; k < s.col_count; ++k) {
        const double product = static_cast<double>(x[static_cast<size_t>(i * s.col_count + k)]) *
                               w.values[static_cast<size_t>(n * s.cols + s.col_begin + k)];
        products += product * product;
      }
    }
  }
  EXPECT_EQ(got.size(), want.size());
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    length += want[i] * want[i];
    difference += (got[i] - want[i]) * (got[i] - want[i]);
  }
  if (std::isnan(difference)) return INFINITY;
  return std::sqrt(difference / std::max({products, length, 1e-30}));
}

// x / rms(x) * weight, rows of weight.size().
inline std::vector<double> expected_norm(const std::vector<float>& x,
                                         const std::vector<float>& weight, double eps) {
  const size_t cols = weight.size();
  std::vector<double> out(x.size());
  for (size_t r = 0; r < x.size(); r += cols) {
    double squares = 0;
    for (size_t i = 0; i < cols; ++i) squares += static_cast<double>(x[r + i]) * x[r + i];
    const double root = std::sqrt(squares / static_cast<double>(cols) + eps);
    for (size_t i = 0; i < cols; ++i) {
      out[r + i] = static_cast<double>(x[r + i]) / root * static_cast<double>(weight[i]);
    }
  }
  return out;
}

inline double expected_activation(double x, Activation activation) {
  const double u = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
  return activation == Activation::kSilu ? x / (1 + std::exp(-x)) : 0.5 * x * (1 + std::tanh(u));
}

inline std::vector<float> to_float(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

}  // namespace trireme::testing
