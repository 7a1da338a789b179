#include "kernels/cpu/experts.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>

namespace trireme::cpu {

struct Experts::Scratch {
  float* logits;     // [tokens][experts]
  int32_t* chosen;   // [tokens][per_token]
  float* weights;    // the same
  int32_t* begin;    // [held + 1]: where an expert's rows begin in the lists
  int32_t* rows;     // [tokens * per_token], by expert: which token
  float* scales;     // the same: its weight
  MatrixView x;      // [tokens, hidden]: an expert's rows
  MatrixView inner;  // [tokens, 2 * ffn]
  MatrixView outer;  // [tokens, hidden]
  int64_t bytes;
};

Experts::Scratch Experts::carve(std::byte* base, const ExpertShape& shape, int64_t tokens) {
  int64_t used = 0;
  const auto take = [&](int64_t count) {  // of 4 bytes each
    std::byte* at = base == nullptr ? nullptr : base + used;
    used += (count * 4 + 63) / 64 * 64;
    return at;
  };
  const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(take(count)); };
  const auto numbers = [&](int64_t count) { return reinterpret_cast<int32_t*>(take(count)); };
  const auto matrix = [&](int64_t cols) { return matrix_f32(floats(tokens * cols), tokens, cols); };
  Scratch s{};
  s.logits = floats(tokens * shape.experts);
  s.chosen = numbers(tokens * shape.per_token);
  s.weights = floats(tokens * shape.per_token);
  s.begin = numbers(shape.held + 1);
  s.rows = numbers(tokens * shape.per_token);
  s.scales = floats(tokens * shape.per_token);
  s.x = matrix(shape.hidden);
  s.inner = matrix(2 * shape.ffn);
  s.outer = matrix(shape.hidden);
  s.bytes = used;
  return s;
}

int64_t Experts::scratch_bytes(const ExpertShape& shape, int64_t tokens) {
  return carve(nullptr, shape, tokens).bytes;
}

namespace {

// The `count` largest of softmax(logits), and what they weigh; NaN loses to every number.
void choose(float* logits, int experts, int count, bool normalize, int32_t* chosen,
            float* weights) {
  const float top = *std::max_element(logits, logits + experts);
  double sum = 0;
  for (int e = 0; e < experts; ++e) {
    sum += std::exp(static_cast<double>(logits[e]) - static_cast<double>(top));
  }
  double kept = 0;
  for (int i = 0; i < count; ++i) {
    int best = -1;
    for (int e = 0; e < experts; ++e) {
      const bool taken = std::find(chosen, chosen + i, e) != chosen + i;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    chosen[i] = best;
    const double p = std::exp(static_cast<double>(logits[best]) - static_cast<double>(top)) / sum;
    weights[i] = static_cast<float>(p);
    kept += p;
  }
  for (int i = 0; normalize && i < count; ++i) {
    weights[i] = static_cast<float>(static_cast<double>(weights[i]) / kept);
  }
}

}  // namespace

void Experts::route(MatrixView x, const ExpertLayer& layer, const Scratch& s) {
  const auto experts = static_cast<int>(layer.router->rows);
  const int k = layer.per_token;
  const LinearPart part{layer.router, nullptr, matrix_f32(s.logits, x.rows, experts), false};
  linear_.run(x, {&part, 1});
  for_rows_(x.rows, int64_t{experts} * k, [&](int64_t row) {
    choose(s.logits + row * experts, experts, k, layer.normalize, s.chosen + row * k,
           s.weights + row * k);
  });
  // Sorted by expert, by counting; within an expert by token.
  const auto held = static_cast<int>(layer.gate.size());
  std::fill_n(s.begin, held + 1, 0);
  const auto each = [&](auto take) {
    for (int64_t i = 0; i < x.rows * k; ++i) {
      const int expert = s.chosen[i] - layer.first;
      if (expert >= 0 && expert < held) take(i, expert);
    }
  };
  each([&](int64_t, int expert) { ++s.begin[expert + 1]; });
  for (int e = 0; e < held; ++e) s.begin[e + 1] += s.begin[e];
  each([&](int64_t i, int expert) {
    const int32_t at = s.begin[expert]++;
    s.rows[at] = static_cast<int32_t>(i / k);
    s.scales[at] = s.weights[i];
  });
  for (int e = held; e > 0; --e) s.begin[e] = s.begin[e - 1];
  s.begin[0] = 0;
}

void Experts::run_expert(MatrixView x, const ExpertLayer& layer, int expert, const Scratch& s,
                         MatrixView out) {
  const int32_t begin = s.begin[expert];
  const int64_t count = s.begin[expert + 1] - begin;
  if (count == 0) return;
  const auto at = static_cast<size_t>(expert);
  const int64_t ffn = layer.gate[at].rows;
  const MatrixView in = s.x.row_range(0, count), outer = s.outer.row_range(0, count);
  const MatrixView gate = s.inner.row_range(0, count).col_range(0, ffn);
  const MatrixView up = s.inner.row_range(0, count).col_range(ffn, ffn);
  for_rows_(count, x.cols,
            [&](int64_t row) { std::copy_n(x.f32(s.rows[begin + row]), x.cols, in.f32(row)); });
  const std::array<LinearPart, 2> parts{
      {{&layer.gate[at], nullptr, gate, false}, {&layer.up[at], nullptr, up, false}}};
  linear_.run(in, parts);
  const auto activate = layer.activation == Activation::kSilu ? ops_.silu_mul : ops_.gelu_tanh_mul;
  for_rows_(count, ffn,
            [&](int64_t row) { activate(gate.f32(row), up.f32(row), ffn, gate.f32(row)); });
  const LinearPart down{&layer.down[at], nullptr, outer, false};
  linear_.run(gate, {&down, 1});
  for_rows_(count, out.cols, [&](int64_t row) {
    ops_.blend(out.f32(s.rows[begin + row]), 1.0f, outer.f32(row), s.scales[begin + row], out.cols);
  });
}

void Experts::run(MatrixView x, const ExpertLayer& layer, MatrixView scratch, MatrixView out,
                  bool accumulate) {
  const auto held = static_cast<int>(layer.gate.size());
  const ExpertShape shape{static_cast<int>(layer.router->rows), layer.per_token, held, x.cols,
                          held > 0 ? layer.gate[0].rows : 0};
  const Scratch s = carve(static_cast<std::byte*>(scratch.data), shape, x.rows);
  assert(s.bytes <= scratch.cols * 4);
  if (!accumulate) {
    for (int64_t row = 0; row < out.rows; ++row) std::fill_n(out.f32(row), out.cols, 0.0f);
  }
  route(x, layer, s);
  for (int expert = 0; expert < held; ++expert) run_expert(x, layer, expert, s, out);
}

}  // namespace trireme::cpu
