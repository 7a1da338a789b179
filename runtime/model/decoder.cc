#include "runtime/model/decoder.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"

namespace trireme {
namespace {

constexpr int64_t kAlignment = 256;  // bytes: every matrix starts on a cache line

// Widths of the activations on one rank.
struct Widths {
  int64_t hidden, q, kv, ffn, vocab;
  ExpertShape experts;
};

Widths widths_of(const ModelConfig& config, const ParallelLayout& layout, int rank) {
  const TensorShard& shard = layout.shard(rank);
  const bool last = layout.stage_of(rank) == layout.pipeline() - 1;
  const ExpertConfig experts = config.experts();
  return {config.hidden,
          shard.q_heads.count * config.head_dim,
          shard.kv_heads.count * config.head_dim,
          shard.ffn.count,
          last ? shard.vocab.count : 0,
          {experts.experts, experts.experts_per_token, static_cast<int>(shard.experts.count),
           config.hidden, shard.expert_ffn.count}};
}

// Hands out consecutive matrices of one buffer; with no buffer it only counts.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}

  MatrixView take(int64_t rows, int64_t cols, DType dtype) {
    std::byte* data = base_ == nullptr ? nullptr : base_ + used_;
    const int64_t bytes = rows * cols * static_cast<int64_t>(size_of(dtype));
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    most_ = std::max(most_, used_);
    return {data, dtype, rows, cols, cols};
  }
  int64_t bytes() const { return most_; }

  // What is taken from now on lies over what was taken since the mark.
  int64_t mark() const { return used_; }
  void rewind(int64_t mark) { used_ = mark; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
  int64_t most_ = 0;
};

struct Activations {
  MatrixView hidden;  // the residual stream, float32
  MatrixView normed;
  MatrixView delta;    // what a block adds to the residual, where ranks must be summed first
  MatrixView q, k, v;  // columns of one matrix
  MatrixView attended;
  MatrixView gate, up;  // columns of one matrix
  MatrixView experts;   // scratch, in words
  MatrixView logit_hidden;
  MatrixView logits;  // float32
};

// Attention, feed-forward and logits never hold data at the same time, so their parts overlap.
Activations carve(Carver& carver, const Widths& widths, const Backend& backend, int64_t tokens,
                  int64_t logit_tokens) {
  const DType dtype = backend.activation_dtype();
  Activations a;
  a.hidden = carver.take(tokens, widths.hidden, DType::kF32);
  a.normed = carver.take(tokens, widths.hidden, dtype);
  a.delta = carver.take(tokens, widths.hidden, dtype);
  const int64_t shared = carver.mark();
  const MatrixView qkv = carver.take(tokens, widths.q + 2 * widths.kv, dtype);
  a.q = qkv.col_range(0, widths.q);
  a.k = qkv.col_range(widths.q, widths.kv);
  a.v = qkv.col_range(widths.q + widths.kv, widths.kv);
  a.attended = carver.take(tokens, widths.q, dtype);
  carver.rewind(shared);
  const MatrixView gate_up = carver.take(tokens, 2 * widths.ffn, dtype);
  a.gate = gate_up.col_range(0, widths.ffn);
  a.up = gate_up.col_range(widths.ffn, widths.ffn);
  if (widths.experts.experts > 0) {
    carver.rewind(shared);
    const int64_t bytes = backend.expert_scratch_bytes(widths.experts, tokens);
    a.experts = carver.take(1, (bytes + 3) / 4, DType::kF32);
  }
  if (widths.vocab > 0) {
    carver.rewind(shared);
    a.logit_hidden = carver.take(logit_tokens, widths.hidden, DType::kF32);
    a.logits = carver.take(logit_tokens, widths.vocab, DType::kF32);
  }
  return a;
}

const float* pointer_or_null(const Buffer& values) {
  return values.empty() ? nullptr : values.as<float>();
}

void refuse_unknown(const ModelConfig& config) {
  if (config.final_softcap == 0.0f) return;
  fail(ErrorCode::kUnimplemented, "{}: a softcap on the logits is not supported yet",
       config.architecture);
}

}  // namespace

struct Decoder::Scratch {
  Buffer storage;
  Activations a;
  std::vector<Buffer> inv_freq;  // per ModelConfig::ropes
  // The current step.
  DecoderBatch batch;
  const KvCache* cache = nullptr;
  std::vector<int> layer_group;                 // layer -> KV group
  std::vector<std::vector<AttentionRow>> rows;  // per KV group: the batch's rows with its tables
  int64_t tokens = 0;
  bool decode = false;        // every row has one token
  bool head_is_done = false;  // the logits of batch.logit_tokens are there
};

Decoder::Decoder(const ModelConfig& config, const ParallelLayout& layout, int rank,
                 DecoderWeights weights, Backend& backend, TensorSums& sums, int64_t max_tokens,
                 int64_t max_logits)
    : config_(config),
      layout_(layout),
      rank_(rank),
      weights_(std::move(weights)),
      backend_(backend),
      sums_(sums),
      parts_(PrefillParts::from_environment()),
      scratch_(std::make_shared<Scratch>()) {
  refuse_unknown(config);
  apart_ = sums.size() > 1;
  for (const LayerConfig& layer : config.layers) apart_ = apart_ || layer.post_norms;
  const int64_t logit_tokens = max_logits > 0 ? max_logits : max_tokens;
  const auto bytes = scratch_bytes(config, layout, rank, backend, max_tokens, max_logits);
  scratch_->storage = backend.allocate(static_cast<size_t>(bytes));
  Carver carver(scratch_->storage.data());
  scratch_->a = carve(carver, widths_of(config, layout, rank), backend,
                      backend.padded_rows(max_tokens), backend.padded_rows(logit_tokens));
  for (const RopeConfig& rope : config.ropes) {
    scratch_->inv_freq.push_back(backend.upload(inverse_frequencies(rope)));
  }
}

int64_t Decoder::scratch_bytes(const ModelConfig& config, const ParallelLayout& layout, int rank,
                               const Backend& backend, int64_t max_tokens, int64_t max_logits) {
  Carver counter(nullptr);
  carve(counter, widths_of(config, layout, rank), backend, backend.padded_rows(max_tokens),
        backend.padded_rows(max_logits > 0 ? max_logits : max_tokens));
  return counter.bytes();
}

SumBuffers Decoder::sum_buffers() const {
  const Activations& a = scratch_->a;
  return {a.hidden, a.delta, a.normed,
          weights_.layers.empty() ? nullptr : weights_.layers[0].attn_norm.as<float>()};
}

MatrixView Decoder::hidden(int64_t tokens) { return scratch_->a.hidden.row_range(0, tokens); }

void Decoder::begin(const DecoderBatch& batch, const KvGroups& groups, const KvCache& cache) {
  Scratch& s = *scratch_;
  s.batch = batch;
  s.cache = &cache;
  s.layer_group = groups.layer_group;
  s.tokens = 0;
  s.decode = true;
  s.head_is_done = false;
  s.rows.resize(groups.windows.size());
  for (size_t g = 0; g < s.rows.size(); ++g) {
    s.rows[g].assign(batch.rows.begin(), batch.rows.end());
    for (size_t i = 0; i < s.rows[g].size(); ++i) s.rows[g][i].blocks = batch.tables[g][i];
  }
  for (const AttentionRow& row : batch.rows) {
    s.tokens = std::max(s.tokens, int64_t{row.token_begin} + row.count);
    s.decode = s.decode && row.count == 1;
  }
  if (s.tokens > s.a.hidden.rows) {
    fail(ErrorCode::kInternal, "decoder: a batch of {} tokens, scratch is for {}", s.tokens,
         s.a.hidden.rows);
  }
  const KvLayerView& kv = cache.layer(static_cast<int>(layout_.stage(rank_).layers.begin));
  backend_.begin_step({batch.tokens, batch.token_slots, s.rows, groups.windows, batch.logit_tokens,
                       kv.kv_heads, kv.head_dim, kv.block_size});
}

void Decoder::embed(int64_t tokens) {
  const MatrixView out = hidden(tokens);
  backend_.embed(scratch_->batch.tokens, weights_.embed, weights_.vocab.begin,
                 config_.embedding_scale, out);
  sums_.add_up(out);
}

void Decoder::omit_sums(bool omit) {
  omits_sums_ = omit;
  sums_.omit(omit);
}

// A replay does the operations that the ledger saw when it was recorded.
void Decoder::repeat(const RepeatKey& key, const std::function<void()>& work) {
  if (ledger_ == nullptr) return backend_.repeat(key, work);
  std::vector<LedgerCall>& tape = tapes_[key];
  bool replayed = true;
  backend_.repeat(key, [&] {
    struct Recording {
      Ledger& ledger;
      ~Recording() { ledger.record(nullptr); }
    };
    replayed = false;
    tape.clear();
    ledger_->record(&tape);
    const Recording recording{*ledger_};
    work();
  });
  if (replayed) ledger_->play(tape);
}

// With the sums omitted, what is fused with them.
void Decoder::sum_only(int64_t tokens) {
  const int64_t rows = backend_.padded_rows(tokens);
  const Activations& a = scratch_->a;
  const MatrixView delta = a.delta.row_range(0, rows);
  backend_.fill_bytes(delta, 0);  // sums of sums would overflow
  backend_.fill_bytes(hidden(rows), 0);
  repeat({rows, false, omits_sums_ ? 3 : 2}, [&] {
    if (layout_.stage_of(rank_) == 0) sums_.add_up(hidden(rows));
    for (const LayerWeights& layer : weights_.layers) {
      add(rows, layer.attn_post_norm, &layer.attn_norm);
      add(rows, layer.ffn_post_norm, &layer.ffn_norm);
    }
  });
}

// Stamps lie within what is recorded, so that they are made at every replay.
void Decoder::forward() {
  Scratch& s = *scratch_;
  const bool last = layout_.stage_of(rank_) == layout_.pipeline() - 1;
  StepTimer* timer = backend_.step_timer();
  const auto work = [&](int64_t rows, bool head_too) {
    if (timer != nullptr) timer->stamp(DevicePart::kLayers);
    run_layers(rows);
    if (head_too) head(s.batch.logit_tokens, rows);
    if (timer != nullptr) timer->stamp(DevicePart::kNothing);
  };
  if (!s.decode) return work(s.tokens, false);
  // A step of decode rows alone is the same work again and again, the head included.
  const bool head_too = last && s.batch.logit_tokens.size() == static_cast<size_t>(s.tokens) &&
                        s.tokens <= s.a.logits.rows;
  const int64_t rows = backend_.padded_rows(s.tokens);
  repeat({rows, head_too, omits_sums_ ? 1 : 0}, [&] { work(rows, head_too); });
  s.head_is_done = head_too;
}

void Decoder::run_layers(int64_t tokens) {
  if (layout_.stage_of(rank_) == 0) embed(tokens);
  const size_t count = layer_count();
  if (sums_.size() > 1 && !scratch_->decode) {
    if (const int64_t cut = parts_.cut(tokens); cut > 0) return run_layers_in_parts(tokens, cut);
  }
  // Alone, a rank adds each block's output to the residual within the block's last product, and
  // normalizes within the next one's first. Tensor ranks sum before they add, and a norm after the
  // block lies between the sum and the addition.
  if (apart_ && count > 0) {
    backend_.rms_norm(hidden(tokens), weights_.layers[0].attn_norm.as<float>(), config_.norm_eps,
                      scratch_->a.normed.row_range(0, tokens));
  }
  for (size_t i = 0; i < count; ++i) {
    const LayerWeights& weights = weights_.layers[i];
    const auto layer = static_cast<int>(i);
    attention_input(layer, {0, tokens}, apart_);
    attention(layer, tokens);
    attention_output(layer, {0, tokens}, apart_);
    if (apart_) add(tokens, weights.attn_post_norm, &weights.ffn_norm);
    feed_forward(layer, {0, tokens}, apart_);
    const Buffer* next = i + 1 < count ? &weights_.layers[i + 1].attn_norm : nullptr;
    if (apart_) add(tokens, weights.ffn_post_norm, next);
  }
}

// residual += the ranks' sum of a.delta, through `post_norm` unless it is empty; a.normed = what
// `norm` makes of that (null: nothing).
void Decoder::add(int64_t tokens, const Buffer& post_norm, const Buffer* norm) {
  const MatrixView residual = hidden(tokens);
  const MatrixView delta = scratch_->a.delta.row_range(0, tokens);
  const MatrixView normed = scratch_->a.normed.row_range(0, tokens);
  const float* weight = norm == nullptr ? nullptr : norm->as<float>();
  if (post_norm.empty()) {
    sums_.add_rms_norm(residual, delta, weight, config_.norm_eps, normed);
  } else {
    sums_.add_normed(residual, delta, post_norm.as<float>(), weight, config_.norm_eps, normed);
  }
}

size_t Decoder::layer_count() const {
  const size_t all = weights_.layers.size();
  return most_layers_ == 0 ? all : std::min(most_layers_, all);
}

// A part's sum runs while the other part, and then the next block of its own, is multiplied:
//   out A | out B    | ffn A    | ffn B    | qkv A    | qkv B, attention
//           sum A      sum B      sum A      sum B
// Attention is of all tokens: those of the second part see the first one's keys.
void Decoder::run_layers_in_parts(int64_t tokens, int64_t cut) {
  const std::array<Part, 2> parts{{{0, cut}, {cut, tokens - cut}}};
  const Activations& a = scratch_->a;
  const auto begin = [&](int part) {
    const Part& p = parts[static_cast<size_t>(part)];
    sums_.begin(part, a.delta.row_range(p.begin, p.count));
  };
  const auto end = [&](int part, const Buffer& post_norm, const Buffer* norm) {
    const Part& p = parts[static_cast<size_t>(part)];
    sums_.end(part, a.hidden.row_range(p.begin, p.count), a.delta.row_range(p.begin, p.count),
              pointer_or_null(post_norm), norm == nullptr ? nullptr : norm->as<float>(),
              config_.norm_eps, a.normed.row_range(p.begin, p.count));
  };
  const size_t count = layer_count();
  if (count == 0) return;
  backend_.rms_norm(hidden(tokens), weights_.layers[0].attn_norm.as<float>(), config_.norm_eps,
                    a.normed.row_range(0, tokens));
  for (size_t i = 0; i < count; ++i) {
    const auto layer = static_cast<int>(i);
    for (const int part : {0, 1}) {
      if (i > 0) end(part, weights_.layers[i - 1].ffn_post_norm, &weights_.layers[i].attn_norm);
      attention_input(layer, parts[static_cast<size_t>(part)], true);
    }
    attention(layer, tokens);
    for (const int part : {0, 1}) {
      attention_output(layer, parts[static_cast<size_t>(part)], true);
      begin(part);
    }
    for (const int part : {0, 1}) {
      end(part, weights_.layers[i].attn_post_norm, &weights_.layers[i].ffn_norm);
      feed_forward(layer, parts[static_cast<size_t>(part)], true);
      begin(part);
    }
  }
  for (const int part : {0, 1}) end(part, weights_.layers[count - 1].ffn_post_norm, nullptr);
}

// Queries, keys and values of these tokens. `normed`: a.normed holds the normalized input and the
// block's output goes to a.delta; else the residual stream is normalized here and added to.
void Decoder::attention_input(int layer, Part tokens, bool normed) {
  interlude();
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const Activations& a = scratch_->a;
  const auto rows = [tokens](const MatrixView& view) {
    return view.row_range(tokens.begin, tokens.count);
  };
  const std::array<LinearPart, 3> qkv{{{&w.q, pointer_or_null(w.q_bias), rows(a.q), false},
                                       {&w.k, pointer_or_null(w.k_bias), rows(a.k), false},
                                       {&w.v, pointer_or_null(w.v_bias), rows(a.v), false}}};
  if (normed) {
    backend_.linear(rows(a.normed), qkv);
  } else {
    backend_.norm_linear(rows(a.hidden), w.attn_norm.as<float>(), config_.norm_eps, rows(a.normed),
                         qkv);
  }
}

void Decoder::attention(int layer, int64_t tokens) {
  interlude();
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const auto global = layout_.stage(rank_).layers.begin + layer;
  const LayerConfig& config = config_.layers[static_cast<size_t>(global)];
  const KvLayerView& kv = scratch_->cache->layer(static_cast<int>(global));
  const auto group = static_cast<size_t>(scratch_->layer_group[static_cast<size_t>(global)]);
  const Activations& a = scratch_->a;

  QkvPrepare prepare;
  prepare.q = a.q.row_range(0, tokens);
  prepare.k = a.k.row_range(0, tokens);
  prepare.v = a.v.row_range(0, tokens);
  prepare.q_heads = static_cast<int>(layout_.shard(rank_).q_heads.count);
  prepare.q_norm = pointer_or_null(w.q_norm);
  prepare.k_norm = pointer_or_null(w.k_norm);
  prepare.norm_eps = config_.norm_eps;
  const RopeConfig& rope = config_.ropes[static_cast<size_t>(config.rope)];
  prepare.rope = {scratch_->inv_freq[static_cast<size_t>(config.rope)].as<float>(), rope.rotary_dim,
                  rope.magnitude};
  const AttentionParams params{prepare.q_heads, config.attention_scale, config.window,
                               config.attention_softcap};
  backend_.attention(prepare, params, scratch_->rows[group], kv, a.attended.row_range(0, tokens));
}

// `normed` as in attention_input().
void Decoder::attention_output(int layer, Part tokens, bool normed) {
  interlude();
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const Activations& a = scratch_->a;
  const MatrixView& to = normed ? a.delta : a.hidden;
  const LinearPart out{&w.o, pointer_or_null(w.o_bias), to.row_range(tokens.begin, tokens.count),
                       !normed};
  backend_.linear(a.attended.row_range(tokens.begin, tokens.count), {&out, 1});
}

// As attention_output().
void Decoder::feed_forward(int layer, Part tokens, bool normed) {
  interlude();
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const auto global = layout_.stage(rank_).layers.begin + layer;
  const Activations& a = scratch_->a;
  const MatrixView residual = a.hidden.row_range(tokens.begin, tokens.count);
  const MatrixView delta = a.delta.row_range(tokens.begin, tokens.count);
  if (!w.router.empty()) return experts(layer, tokens, normed);
  if (w.down.empty()) {  // a rank without a part of the feed-forward adds nothing
    if (normed) backend_.fill_bytes(delta, 0);
    return;
  }
  const MatrixView x = a.normed.row_range(tokens.begin, tokens.count);
  const MatrixView gate = a.gate.row_range(tokens.begin, tokens.count);
  const std::array<LinearPart, 2> parts{
      {{&w.gate, nullptr, gate, false},
       {&w.up, nullptr, a.up.row_range(tokens.begin, tokens.count), false}}};
  backend_.gated_linear(normed ? x : residual, normed ? nullptr : w.ffn_norm.as<float>(),
                        config_.norm_eps, x, parts,
                        config_.layers[static_cast<size_t>(global)].activation);
  const LinearPart out{&w.down, nullptr, normed ? delta : residual, !normed};
  backend_.linear(gate, {&out, 1});
}

// As attention_output().
void Decoder::experts(int layer, Part tokens, bool normed) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const auto global = layout_.stage(rank_).layers.begin + layer;
  const LayerConfig& config = config_.layers[static_cast<size_t>(global)];
  const Activations& a = scratch_->a;
  const MatrixView x = a.normed.row_range(tokens.begin, tokens.count);
  const MatrixView residual = a.hidden.row_range(tokens.begin, tokens.count);
  if (!normed) backend_.rms_norm(residual, w.ffn_norm.as<float>(), config_.norm_eps, x);
  ExpertLayer experts;
  experts.router = &w.router;
  experts.gate = w.expert_gate;
  experts.up = w.expert_up;
  experts.down = w.expert_down;
  experts.first = static_cast<int>(layout_.shard(rank_).experts.begin);
  experts.per_token = config.experts.experts_per_token;
  experts.normalize = config.experts.normalize_weights;
  experts.activation = config.activation;
  backend_.experts(x, experts, a.experts,
                   normed ? a.delta.row_range(tokens.begin, tokens.count) : residual, !normed);
}

// Logits of `tokens`; with more `rows` than those, the others are padding.
MatrixView Decoder::head(std::span<const int32_t> tokens, int64_t rows) {
  const Activations& a = scratch_->a;
  const MatrixView in = a.logit_hidden.row_range(0, rows);
  const MatrixView logits = a.logits.row_range(0, rows);
  backend_.gather_rows(a.hidden, tokens, in);
  const Weight& weight = config_.tied_embeddings ? weights_.embed : weights_.head;
  const LinearPart part{&weight, nullptr, logits, false};
  backend_.norm_linear(in, weights_.norm.as<float>(), config_.norm_eps, a.normed.row_range(0, rows),
                       {&part, 1});
  return logits;
}

MatrixView Decoder::logits(std::span<const int32_t> tokens) {
  const Scratch& s = *scratch_;
  const auto count = static_cast<int64_t>(tokens.size());
  if (count > s.a.logits.rows) {
    fail(ErrorCode::kInternal, "decoder: logits of {} tokens, scratch is for {}", count,
         s.a.logits.rows);
  }
  const bool done = s.head_is_done && tokens.data() == s.batch.logit_tokens.data() &&
                    tokens.size() == s.batch.logit_tokens.size();
  if (count > 0 && !done) head(tokens, count);
  return s.a.logits.row_range(0, count);
}

}  // namespace trireme
