#include "runtime/model/decoder.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"

namespace trireme {
namespace {

constexpr int64_t kAlignment = 16;  // floats: every matrix starts on a cache line

// Widths of the activations on one rank.
struct Widths {
  int64_t hidden, q, kv, ffn, vocab;
};

Widths widths_of(const ModelConfig& config, const ParallelLayout& layout, int rank) {
  const TensorShard& shard = layout.shard(rank);
  const bool last = layout.stage_of(rank) == layout.pipeline() - 1;
  return {config.hidden, shard.q_heads.count * config.head_dim,
          shard.kv_heads.count * config.head_dim, shard.ffn.count, last ? shard.vocab.count : 0};
}

// Hands out consecutive matrices of one buffer; with no buffer it only counts.
class Carver {
 public:
  explicit Carver(float* base) : base_(base) {}

  MatrixView take(int64_t rows, int64_t cols) {
    float* data = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (rows * cols + kAlignment - 1) / kAlignment * kAlignment;
    most_ = std::max(most_, used_);
    return matrix_f32(data, rows, cols);
  }
  int64_t bytes() const { return most_ * static_cast<int64_t>(sizeof(float)); }

  // What is taken from now on lies over what was taken since the mark.
  int64_t mark() const { return used_; }
  void rewind(int64_t mark) { used_ = mark; }

 private:
  float* base_;
  int64_t used_ = 0;
  int64_t most_ = 0;
};

struct Activations {
  MatrixView hidden;  // the residual stream
  MatrixView normed;
  MatrixView delta;  // what a block adds to the residual
  MatrixView q, k, v, attended;
  MatrixView gate, up;
  MatrixView logit_rows;
  MatrixView logits;
};

// Attention, feed-forward and logits never hold data at the same time, so their parts overlap.
Activations carve(Carver& carver, const Widths& widths, int64_t tokens, int64_t logit_tokens) {
  Activations a;
  a.hidden = carver.take(tokens, widths.hidden);
  a.normed = carver.take(tokens, widths.hidden);
  a.delta = carver.take(tokens, widths.hidden);
  const int64_t shared = carver.mark();
  a.q = carver.take(tokens, widths.q);
  a.k = carver.take(tokens, widths.kv);
  a.v = carver.take(tokens, widths.kv);
  a.attended = carver.take(tokens, widths.q);
  carver.rewind(shared);
  a.gate = carver.take(tokens, widths.ffn);
  a.up = carver.take(tokens, widths.ffn);
  if (widths.vocab > 0) {
    carver.rewind(shared);
    a.logit_rows = carver.take(logit_tokens, widths.hidden);
    a.logits = carver.take(logit_tokens, widths.vocab);
  }
  return a;
}

const float* pointer_or_null(const std::vector<float>& values) {
  return values.empty() ? nullptr : values.data();
}

void refuse_unknown(const ModelConfig& config, Part layers) {
  const auto refuse = [&config](const char* what) {
    fail(ErrorCode::kUnimplemented, "{}: {} not supported yet", config.architecture, what);
  };
  if (config.final_softcap != 0.0f) refuse("a softcap on the logits is");
  for (int64_t i = layers.begin; i < layers.end(); ++i) {
    const LayerConfig& layer = config.layers[static_cast<size_t>(i)];
    if (layer.post_norms) refuse("norms after attention and feed-forward are");
    if (layer.experts.experts > 0) refuse("experts are");
  }
}

}  // namespace

struct Decoder::Scratch {
  Buffer storage;
  Activations a;
  std::vector<std::vector<float>> inv_freq;  // per ModelConfig::ropes
  std::vector<AttentionRow> rows;            // the batch's rows with one group's block tables
};

Decoder::Decoder(const ModelConfig& config, const ParallelLayout& layout, int rank,
                 DecoderWeights weights, Backend& backend, Communicator& tp, int64_t max_tokens,
                 int64_t max_logits)
    : config_(config),
      layout_(layout),
      rank_(rank),
      weights_(std::move(weights)),
      backend_(backend),
      tp_(tp),
      scratch_(std::make_shared<Scratch>()) {
  refuse_unknown(config, layout.stage(rank).layers);
  if (backend.activation_dtype() != DType::kF32) {
    fail(ErrorCode::kUnimplemented, "decoder: activations of type {} are not supported yet",
         to_string(backend.activation_dtype()));
  }
  const Widths widths = widths_of(config, layout, rank);
  const int64_t logit_tokens = max_logits > 0 ? max_logits : max_tokens;
  const auto bytes = scratch_bytes(config, layout, rank, max_tokens, max_logits);
  scratch_->storage = Buffer(static_cast<size_t>(bytes));
  Carver carver(scratch_->storage.as<float>());
  scratch_->a = carve(carver, widths, max_tokens, logit_tokens);
  for (const RopeConfig& rope : config.ropes) {
    scratch_->inv_freq.push_back(inverse_frequencies(rope));
  }
  scratch_->rows.reserve(static_cast<size_t>(max_tokens));
}

int64_t Decoder::scratch_bytes(const ModelConfig& config, const ParallelLayout& layout, int rank,
                               int64_t max_tokens, int64_t max_logits) {
  Carver counter(nullptr);
  carve(counter, widths_of(config, layout, rank), max_tokens,
        max_logits > 0 ? max_logits : max_tokens);
  return counter.bytes();
}

MatrixView Decoder::hidden(int64_t tokens) { return scratch_->a.hidden.row_range(0, tokens); }

void Decoder::embed(const DecoderBatch& batch) {
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const MatrixView out = hidden(tokens);
  backend_.embed(batch.tokens, weights_.embed, weights_.vocab.begin, config_.embedding_scale, out);
  if (tp_.size() > 1) {
    tp_.all_reduce_sum({out.f32(), static_cast<size_t>(tokens * out.cols)});
  }
}

// The partial sums of a block's last matrix become whole.
void Decoder::reduce(int64_t tokens) {
  if (tp_.size() == 1) return;
  const MatrixView& delta = scratch_->a.delta;
  tp_.all_reduce_sum({delta.f32(), static_cast<size_t>(tokens * delta.cols)});
}

void Decoder::forward(const DecoderBatch& batch, const KvGroups& groups, KvCache& cache) {
  int64_t tokens = 0;
  for (const AttentionRow& row : batch.rows) {
    tokens = std::max(tokens, int64_t{row.token_begin} + row.count);
  }
  const float eps = config_.norm_eps;
  const MatrixView residual = hidden(tokens);
  const MatrixView normed = scratch_->a.normed.row_range(0, tokens);
  const MatrixView delta = scratch_->a.delta.row_range(0, tokens);
  const auto count = weights_.layers.size();
  if (count > 0) {
    backend_.rms_norm(residual, weights_.layers[0].attn_norm.data(), eps, normed);
  }
  for (size_t i = 0; i < count; ++i) {
    attention(static_cast<int>(i), batch, groups, cache);
    reduce(tokens);
    backend_.add_rms_norm(residual, delta, weights_.layers[i].ffn_norm.data(), eps, normed);
    feed_forward(static_cast<int>(i), tokens);
    reduce(tokens);
    const float* next = i + 1 < count ? weights_.layers[i + 1].attn_norm.data() : nullptr;
    backend_.add_rms_norm(residual, delta, next, eps, normed);
  }
}

// normed -> delta. `layer` counts from this stage's first.
void Decoder::attention(int layer, const DecoderBatch& batch, const KvGroups& groups,
                        KvCache& cache) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const auto global = layout_.stage(rank_).layers.begin + layer;
  const LayerConfig& config = config_.layers[static_cast<size_t>(global)];
  const KvLayerView& kv = cache.layer(static_cast<int>(global));
  const auto group = static_cast<size_t>(groups.layer_group[static_cast<size_t>(global)]);
  auto& rows = scratch_->rows;
  rows.assign(batch.rows.begin(), batch.rows.end());
  int64_t tokens = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].blocks = batch.tables[group][i];
    tokens = std::max(tokens, int64_t{rows[i].token_begin} + rows[i].count);
  }
  const Activations& a = scratch_->a;
  const MatrixView q = a.q.row_range(0, tokens);
  const MatrixView k = a.k.row_range(0, tokens);
  const MatrixView v = a.v.row_range(0, tokens);
  const MatrixView attended = a.attended.row_range(0, tokens);
  const std::array<LinearPart, 3> qkv{{{&w.q, pointer_or_null(w.q_bias), q, false},
                                       {&w.k, pointer_or_null(w.k_bias), k, false},
                                       {&w.v, pointer_or_null(w.v_bias), v, false}}};
  backend_.linear(a.normed.row_range(0, tokens), qkv);

  QkvPrepare prepare;
  prepare.q = q;
  prepare.k = k;
  prepare.v = v;
  prepare.q_heads = static_cast<int>(layout_.shard(rank_).q_heads.count);
  prepare.q_norm = pointer_or_null(w.q_norm);
  prepare.k_norm = pointer_or_null(w.k_norm);
  prepare.norm_eps = config_.norm_eps;
  prepare.rope = {scratch_->inv_freq[static_cast<size_t>(config.rope)].data(),
                  config_.ropes[static_cast<size_t>(config.rope)].rotary_dim, 1.0f};
  backend_.prepare_qkv(prepare, rows, kv);

  const AttentionParams params{prepare.q_heads, config.attention_scale, config.window,
                               config.attention_softcap};
  backend_.paged_attention(q, params, rows, kv, attended);
  const LinearPart out{&w.o, pointer_or_null(w.o_bias), a.delta.row_range(0, tokens), false};
  backend_.linear(attended, {&out, 1});
}

// normed -> delta.
void Decoder::feed_forward(int layer, int64_t tokens) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const auto global = layout_.stage(rank_).layers.begin + layer;
  const Activations& a = scratch_->a;
  const MatrixView delta = a.delta.row_range(0, tokens);
  if (w.down.empty()) {  // a rank without a part of the feed-forward adds nothing
    std::fill_n(delta.f32(), tokens * delta.cols, 0.0f);
    return;
  }
  const MatrixView gate = a.gate.row_range(0, tokens);
  const MatrixView up = a.up.row_range(0, tokens);
  const std::array<LinearPart, 2> parts{
      {{&w.gate, nullptr, gate, false}, {&w.up, nullptr, up, false}}};
  backend_.linear(a.normed.row_range(0, tokens), parts);
  backend_.gated_activation(gate, up, config_.layers[static_cast<size_t>(global)].activation, gate);
  const LinearPart out{&w.down, nullptr, delta, false};
  backend_.linear(gate, {&out, 1});
}

MatrixView Decoder::logits(const DecoderBatch& batch) {
  const Activations& a = scratch_->a;
  const auto count = static_cast<int64_t>(batch.logit_tokens.size());
  if (count > a.logits.rows) {
    fail(ErrorCode::kInternal, "decoder: logits of {} tokens, scratch is for {}", count,
         a.logits.rows);
  }
  const MatrixView rows = a.logit_rows.row_range(0, count);
  const MatrixView logits = a.logits.row_range(0, count);
  if (count == 0) return logits;
  backend_.gather_rows(a.hidden, batch.logit_tokens, rows);
  backend_.rms_norm(rows, weights_.norm.data(), config_.norm_eps, rows);
  const Weight& head = config_.tied_embeddings ? weights_.embed : weights_.head;
  const LinearPart part{&head, nullptr, logits, false};
  backend_.linear(rows, {&part, 1});
  return logits;
}

}  // namespace trireme
