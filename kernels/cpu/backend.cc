#include "kernels/backend.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <functional>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/experts.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/rope_cache.h"
#include "kernels/limits.h"

namespace trireme {
namespace cpu {
namespace {

// Elements below which an op stays on the caller's thread.
constexpr int64_t kSerialElements = 32768;

class CpuBackend final : public Backend {
 public:
  CpuBackend(ThreadPool& pool, CpuIsa isa)
      : pool_(pool),
        isa_(isa),
        ops_(ops_of(isa)),
        reference_(reference_ops()),
        linear_(pool, ops_),
        experts_(
            linear_, ops_,
            [this](int64_t rows, int64_t cols, const auto& each) { for_rows(rows, cols, each); }),
        attention_(pool, ops_),
        scalar_attention_(pool, reference_),
        row_scratch_(static_cast<size_t>(pool.size())) {}

  std::string description() const override {
    return fmt::format("cpu {}, {} thread{}", ops_.name, pool_.size(), pool_.size() > 1 ? "s" : "");
  }
  DType activation_dtype() const override { return DType::kF32; }
  bool supports_kv(const KvShape& shape) const override { return shape.head_dim > 0; }

  MachineLimits measure_limits(QuantFormat weights) override {
    const TileKind tile = ops_.linear(weights).tile;
    return {measure_read_bandwidth(pool_), measure_flops(pool_, isa_, weights),
            tile == TileKind::kInt8   ? "int8 dot products"
            : tile == TileKind::kBF16 ? "bf16 dot products"
                                      : "f32 multiply-adds"};
  }

  Weight make_weight(const WeightSlice& slice) override {
    return pack_weight(pool_, ops_, slice, weight_memory_);
  }

  void embed(std::span<const int32_t> tokens, const Weight& table, int64_t vocab_begin, float scale,
             MatrixView out) override {
    assert(out.cols == table.col_count && out.rows >= static_cast<int64_t>(tokens.size()));
    const auto count = static_cast<int64_t>(tokens.size());
    const auto fill = [&](int thread, int threads) {
      const Range range = split_range(count, thread, threads);
      for (int64_t i = range.begin; i < range.end; ++i) {
        float* to = out.f32(i);
        const int64_t row = tokens[static_cast<size_t>(i)] - vocab_begin;
        if (row < 0 || row >= table.rows) {
          std::fill_n(to, out.cols, 0.0f);
          continue;
        }
        read_weight_row(ops_, table, row, row_scratch_[static_cast<size_t>(thread)], to);
        if (scale != 1.0f) ops_.blend(to, scale, nullptr, 0.0f, out.cols);
      }
    };
    if (count * out.cols <= kSerialElements) return fill(0, 1);
    const auto body = [&](int thread) { fill(thread, pool_.size()); };
    pool_.run(std::ref(body));
  }

  void rms_norm(MatrixView x, const float* weight, float eps, MatrixView out) override {
    for_rows(x.rows, x.cols,
             [&](int64_t row) { ops_.rms_norm(x.f32(row), weight, eps, x.cols, out.f32(row)); });
  }

  void add_rms_norm(MatrixView residual, MatrixView delta, const float* weight, float eps,
                    MatrixView out) override {
    for_rows(residual.rows, residual.cols, [&](int64_t row) {
      ops_.add(residual.f32(row), delta.f32(row), residual.cols);
      if (weight == nullptr) return;
      ops_.rms_norm(residual.f32(row), weight, eps, residual.cols, out.f32(row));
    });
  }

  void add_normed(MatrixView residual, MatrixView delta, const float* delta_norm,
                  const float* weight, float eps, MatrixView out) override {
    for_rows(residual.rows, residual.cols, [&](int64_t row) {
      ops_.rms_norm(delta.f32(row), delta_norm, eps, delta.cols, delta.f32(row));
      ops_.add(residual.f32(row), delta.f32(row), residual.cols);
      if (weight == nullptr) return;
      ops_.rms_norm(residual.f32(row), weight, eps, residual.cols, out.f32(row));
    });
  }

  void linear(MatrixView x, std::span<const LinearPart> parts) override { linear_.run(x, parts); }

  void experts(MatrixView x, const ExpertLayer& layer, MatrixView scratch, MatrixView out,
               bool accumulate) override {
    experts_.run(x, layer, scratch, out, accumulate);
  }
  int64_t expert_scratch_bytes(const ExpertShape& shape, int64_t tokens) const override {
    return Experts::scratch_bytes(shape, tokens);
  }

  void prepare_qkv(const QkvPrepare& qkv, std::span<const AttentionRow> rows,
                   const KvLayerView& kv) override;

  void paged_attention(MatrixView q, const AttentionParams& params,
                       std::span<const AttentionRow> rows, const KvLayerView& kv,
                       MatrixView out) override {
    assert(params.q_heads % kv.kv_heads == 0);
    const bool vector = kv.head_dim % 8 == 0 && kv.head_dim <= 256;
    (vector ? attention_ : scalar_attention_).run(q, params, rows, kv, out);
  }

  void gated_activation(MatrixView gate, MatrixView up, Activation activation,
                        MatrixView out) override {
    const auto apply = activation == Activation::kSilu ? ops_.silu_mul : ops_.gelu_tanh_mul;
    for_rows(gate.rows, gate.cols,
             [&](int64_t row) { apply(gate.f32(row), up.f32(row), gate.cols, out.f32(row)); });
  }

  void gather_rows(MatrixView x, std::span<const int32_t> indices, MatrixView out) override {
    for (size_t i = 0; i < indices.size(); ++i) {
      std::copy_n(x.f32(indices[i]), x.cols, out.f32(static_cast<int64_t>(i)));
    }
  }

  void fill_bytes(MatrixView x, uint8_t value) override {
    for (int64_t row = 0; row < x.rows; ++row) {
      std::memset(x.row_range(row, 1).data, value, static_cast<size_t>(x.cols) * size_of(x.dtype));
    }
  }

 private:
  // each(row) for every row; on all threads only where that pays.
  template <typename Each>
  void for_rows(int64_t rows, int64_t cols, const Each& each) {
    if (rows == 1 || rows * cols <= kSerialElements) {
      for (int64_t row = 0; row < rows; ++row) each(row);
      return;
    }
    const auto body = [&](int thread) {
      const Range range = split_range(rows, thread, pool_.size());
      for (int64_t row = range.begin; row < range.end; ++row) each(row);
    };
    pool_.run(std::ref(body));
  }

  void prepare_heads(float* heads, int count, int head_dim, const float* norm, float eps,
                     const RopeParams& rope, const float* angles) const {
    const int64_t half = rope.rotary_dim / 2;
    for (int h = 0; h < count; ++h, heads += head_dim) {
      if (norm != nullptr) ops_.rms_norm(heads, norm, eps, head_dim, heads);
      if (half > 0) ops_.rotate(heads, angles, angles + half, half);
    }
  }

  ThreadPool& pool_;
  CpuIsa isa_;
  const Ops& ops_;
  const Ops& reference_;
  WeightMemory weight_memory_;
  Linear linear_;
  Experts experts_;
  Attention attention_;
  Attention scalar_attention_;
  RopeCache rope_cache_;
  std::vector<Buffer> row_scratch_;  // one a thread
  struct TokenPlace {
    int32_t token;
    int32_t slot;  // within its block
    int64_t block;
  };
  std::vector<TokenPlace> places_;
  std::vector<int32_t> positions_;
};

void CpuBackend::prepare_qkv(const QkvPrepare& qkv, std::span<const AttentionRow> rows,
                             const KvLayerView& kv) {
  places_.clear();
  positions_.clear();
  for (const AttentionRow& row : rows) {
    for (int32_t i = 0; i < row.count; ++i) {
      const int32_t position = row.position + i;
      places_.push_back(
          {row.token_begin + i, position % kv.block_size, row.blocks[position / kv.block_size]});
      positions_.push_back(position);
    }
  }
  const float* angles = rope_cache_.lookup(qkv.rope, positions_);
  const auto bytes = static_cast<int64_t>(size_of(kv.dtype));
  const int64_t cols = int64_t{qkv.q_heads + 2 * kv.kv_heads} * kv.head_dim;
  for_rows(static_cast<int64_t>(places_.size()), cols, [&](int64_t i) {
    const TokenPlace& place = places_[static_cast<size_t>(i)];
    const float* angle = angles + i * (qkv.rope.rotary_dim / 2 * 2);
    float* k = qkv.k.f32(place.token);
    const float* v = qkv.v.f32(place.token);
    prepare_heads(qkv.q.f32(place.token), qkv.q_heads, kv.head_dim, qkv.q_norm, qkv.norm_eps,
                  qkv.rope, angle);
    prepare_heads(k, kv.kv_heads, kv.head_dim, qkv.k_norm, qkv.norm_eps, qkv.rope, angle);
    for (int h = 0; h < kv.kv_heads; ++h) {
      const int64_t at =
          ((place.block * kv.kv_heads + h) * kv.block_size + place.slot) * kv.head_dim * bytes;
      ops_.convert(k + h * kv.head_dim, kv.head_dim, kv.dtype, static_cast<std::byte*>(kv.k) + at);
      ops_.convert(v + h * kv.head_dim, kv.head_dim, kv.dtype, static_cast<std::byte*>(kv.v) + at);
    }
  });
}

}  // namespace
}  // namespace cpu

std::unique_ptr<Backend> make_cpu_backend(ThreadPool& pool, CpuIsa isa) {
  return std::make_unique<cpu::CpuBackend>(pool, isa);
}

}  // namespace trireme
