// The operations that a decoder needs, and nothing else. The CPU backend is the reference: an op
// lands there first, and one test body runs on every backend.
//
// Ops take views and never allocate per call (a backend may keep scratch that grows to the largest
// batch seen). Activations are [tokens, features], row-major, of the backend's activation_dtype();
// the residual stream and logits are float32 everywhere. Shapes are the caller's promise (checked
// by assertions in debug builds); unsupported combinations are refused by make_weights and by
// supports_kv, at load, never mid-step.
//
// Pointers to weights, norms, frequencies and views are to the backend's own memory (allocate,
// upload). What comes from the plan of a step (tokens, rows, block tables) is host memory; a device
// backend has copied it in begin_step() and knows it again by its address. Device ops are queued on
// stream(), in order, and have finished when read_back() or synchronize() returns.
//
// Row independence: on the CPU backend the result for a row depends neither on the other rows of
// the call nor on how a prompt is cut into chunks; sums run in one fixed order. This is what makes
// "the same tokens whatever the batch" exact.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/matrix_view.h"
#include "base/peer_buffers.h"
#include "kernels/logit_rows.h"
#include "kernels/peer_sums.h"
#include "kernels/streams.h"
#include "kernels/weight.h"

namespace trireme {

class ThreadPool;

// y[tokens, w.rows] (+)= x[tokens, w.col_count] Wᵀ (+ bias[w.rows]).
struct LinearPart {
  const Weight* weight = nullptr;
  const float* bias = nullptr;  // optional
  MatrixView out;
  bool accumulate = false;
};

// Rotary embedding, half-split ("NeoX") convention: pairs are (i, i + rotary_dim/2).
// inv_freq[rotary_dim/2] has every scaling rule (linear, llama3) already in it;
// `magnitude` multiplies sin and cos (1 for those rules).
struct RopeParams {
  const float* inv_freq = nullptr;
  int rotary_dim = 0;  // leading part of head_dim that is rotated
  float magnitude = 1.0f;
};

// The paged KV of one layer on this rank: K and V apart, each [block][kv_head][token][dim].
struct KvLayerView {
  void* k = nullptr;
  void* v = nullptr;
  DType dtype = DType::kF32;
  int kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;  // tokens a block
  int64_t blocks = 0;  // of the cache; used by device backends only
};

// What a KV cache must be like for its attention to be computed.
struct KvShape {
  DType dtype = DType::kF32;
  int head_dim = 0;
  int group = 1;        // query heads per KV head, the most of any rank
  int block_size = 16;  // tokens a block
};

// Consecutive tokens of one sequence within a step's flattened token batch. Host memory.
struct AttentionRow {
  int32_t token_begin = 0;  // first row of the batch
  int32_t count = 0;        // tokens; 1 in decode
  int32_t position = 0;     // position of the first token in its sequence
  // blocks[p / block_size] holds position p, for every p < position + count that is in the window.
  const int32_t* blocks = nullptr;
};

// Prepares q, k, v in place and stores k, v: optional RMSNorm per head, rope, KV write.
struct QkvPrepare {
  MatrixView q;  // [tokens, q_heads * head_dim], in and out
  MatrixView k;  // [tokens, kv_heads * head_dim], in (scratch afterwards)
  MatrixView v;  // [tokens, kv_heads * head_dim], in
  int q_heads = 0;
  const float* q_norm = nullptr;  // [head_dim], optional (Qwen3)
  const float* k_norm = nullptr;
  float norm_eps = 0.0f;
  RopeParams rope;
};

struct AttentionParams {
  int q_heads = 0;       // a multiple of the layer's kv_heads on this rank
  float scale = 0.0f;    // usually 1/sqrt(head_dim)
  int window = 0;        // a token sees positions > p - window; 0 = all
  float softcap = 0.0f;  // s = softcap * tanh(s / softcap); 0 = off
};

enum class Activation : uint8_t { kSilu, kGeluTanh };

// A layer's experts as one rank has them.
struct ExpertLayer {
  const Weight* router = nullptr;  // [experts, hidden]: all of them, on every rank
  // Of the experts [first, first + gate.size()): [ffn, hidden], [ffn, hidden], [hidden, ffn]. Gate
  // and up are made by one call of make_weights, in turn, and down by another.
  std::span<const Weight> gate, up, down;
  int first = 0;
  int per_token = 1;
  bool normalize = true;  // the weights of a token's experts are made to sum to 1
  Activation activation = Activation::kSilu;
};

// What the scratch of experts() follows from.
struct ExpertShape {
  int experts = 0;
  int per_token = 0;
  int held = 0;  // by this rank
  int64_t hidden = 0;
  int64_t ffn = 0;  // of an expert on this rank
};

// What a step's plan says, in host memory that stays as it is until the next begin_step().
struct StepInputs {
  std::span<const int32_t> tokens;
  // Empty, or for each token -1 or a slot: then the token is what LogitRows::choose() chose for
  // that slot last, which only the device knows yet.
  std::span<const int32_t> token_slots;
  // Per KV group: the step's rows, decode rows first, with that group's block tables.
  std::span<const std::vector<AttentionRow>> groups;
  std::span<const int> windows;           // per KV group, as AttentionParams::window
  std::span<const int32_t> logit_tokens;  // rows of the batch whose logits are wanted
  // Of the KV cache.
  int kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;
};

// What the size of a backend's own workspaces follows from, on one rank.
struct WorkspaceShape {
  int q_heads = 0;
  int head_dim = 0;
  int kv_groups = 1;
  int64_t vocab = 0;  // of this rank's logits; 0: it has none
};

// A backend's own memory, for the account of a start; host memory is accounted elsewhere.
struct DeviceMemory {
  int64_t free = 0;
  int64_t total = 0;
};

// What a backend's machine can do at most, measured now, next to what is judged by it.
struct MachineLimits {
  double read_bandwidth = 0;  // bytes/s
  double flops = 0;           // operations/s (a multiply-add is two) of `arithmetic`
  std::string arithmetic;     // e.g. "f32 multiply-adds"
};

// What makes a step's work the same as an earlier one's, beside the number of rows.
struct RepeatKey {
  int64_t rows = 0;
  bool logits = false;  // with the head
  int variant = 0;      // of the work: a measurement may leave parts of it out
  auto operator<=>(const RepeatKey&) const = default;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string description() const = 0;  // e.g. "cpu avx512-vnni, 2 threads"
  virtual DType activation_dtype() const = 0;
  virtual bool supports_kv(const KvShape& shape) const = 0;

  // Logits are computed for so many rows at a time: a prompt's log-probabilities need scratch for
  // this many rows of the vocabulary and no more.
  virtual int64_t max_logit_rows() const { return 64; }
  // About how many operations of a product it does while it reads a byte of memory: for dealing
  // work out, not for judging it (measure_limits). The default is a few CPU cores'.
  virtual double operations_per_byte() const { return 8; }
  // Tensor-parallel parts of the feed-forward are cut at multiples of this.
  virtual int64_t width_multiple() const { return 1; }
  // Takes about a second. Of the arithmetic that such weights are multiplied with.
  virtual MachineLimits measure_limits(QuantFormat weights) = 0;
  // Nothing for host memory.
  virtual std::optional<DeviceMemory> device_memory() const { return std::nullopt; }
  // About what ops and sampling will allocate for themselves, beside what callers allocate.
  virtual int64_t workspace_bytes(const WorkspaceShape& /*shape*/) const { return 0; }
  // Uninitialized memory, aligned for any op. Throws kResourceExhausted.
  virtual Buffer allocate(size_t bytes) { return Buffer(bytes); }
  // A copy of `values` (norms, biases, frequencies).
  virtual Buffer upload(std::span<const float> values);
  // The native stream that ops are queued on; null: ops have finished when they return.
  virtual void* stream() const { return nullptr; }
  virtual void synchronize() {}
  // Throws what has gone wrong on the device while nobody waited.
  virtual void check() {}
  // Streams beside stream() and marks in any of them; null where ops have finished when they
  // return.
  virtual std::unique_ptr<SideStream> make_side_stream() { return nullptr; }
  virtual std::unique_ptr<StreamMark> make_mark() { return nullptr; }
  // Null where ops run on the host, whose clock tells as much.
  virtual StepTimer* step_timer() { return nullptr; }
  // `view` (float32, contiguous rows) where the host can read and write it: the view itself, or a
  // copy that stays until the next call, after everything queued has finished.
  virtual MatrixView read_back(MatrixView view) { return view; }
  // What samples from logits where they are; null: where they are is host memory. Its calls are
  // ordered with the ops on stream(); an answer has waited for them. `slots`: those of choose() and
  // of StepInputs::token_slots. Where there are PeerSums, choose() goes over their ranks.
  virtual std::unique_ptr<LogitRows> make_logit_rows(int32_t /*slots*/) { return nullptr; }

  // The device's int32 [slots] of the tokens that choose() chose last, which token_slots read;
  // `slots` as in make_logit_rows(). Of the backend's life. Empty where tokens are chosen on the
  // host.
  virtual Buffer chosen_tokens(int32_t /*slots*/) { return {}; }

  // Memory that make_peer_sums() takes on each of `ranks` ranks, for rows of up to `width`
  // activations; 0: this backend has none.
  virtual size_t peer_bytes(int /*ranks*/, int64_t /*width*/) const { return 0; }
  // Once, before anything is recorded, with buffers of peer_bytes(). Of the same life as the
  // backend.
  virtual std::unique_ptr<PeerSums> make_peer_sums(PeerBuffers /*peers*/, int64_t /*width*/) {
    return nullptr;
  }
  // Seconds that one `work` takes, a fixed sequence of ops, as one of `times` in a row: the least
  // of a few rounds. Collective if `work` is.
  virtual double measure(const std::function<void()>& work, int times);

  // Packs a slice for linear() (and embed()), at the slice's own size up to alignment.
  // Throws kUnimplemented for a format this backend cannot hold.
  virtual Weight make_weight(const WeightSlice& slice) = 0;
  // Bytes that such a slice will take.
  virtual int64_t weight_bytes(const WeightSlice& slice) const;
  // Slices that are multiplied with the same x: a backend may keep them as one matrix.
  virtual std::vector<Weight> make_weights(std::span<const WeightSlice> slices);

  // A step's inputs are known: before any op that names them.
  virtual void begin_step(const StepInputs& /*inputs*/) {}
  // Decode rows (count 1 each) that a step of `rows` such rows should be padded to, so that
  // repeat() finds the same work again.
  virtual int64_t padded_rows(int64_t rows) const { return rows; }
  // Does `work`, a fixed sequence of ops on fixed views for `rows` decode rows. A backend may
  // record it at the first call with a key and replay it later without calling `work`.
  virtual void repeat(const RepeatKey& /*key*/, const std::function<void()>& work) { work(); }
  // What was recorded is recorded anew: views that it names are no longer valid.
  virtual void forget_recorded() {}

  // out[i] = row tokens[i] - vocab_begin of table, or zeros where that row is not of this slice;
  // times `scale`. out is float32, of the residual stream, and may have more rows than tokens.
  virtual void embed(std::span<const int32_t> tokens, const Weight& table, int64_t vocab_begin,
                     float scale, MatrixView out) = 0;

  // out = x / rms(x) * weight, rms over cols with eps inside the root; x is float32. out may be x.
  virtual void rms_norm(MatrixView x, const float* weight, float eps, MatrixView out) = 0;

  // residual += delta; out = rms_norm(residual). weight == nullptr: only the addition.
  // residual is float32.
  virtual void add_rms_norm(MatrixView residual, MatrixView delta, const float* weight, float eps,
                            MatrixView out) = 0;

  // residual += rms_norm(delta), weighted with delta_norm; then as add_rms_norm. `delta` is scratch
  // afterwards.
  virtual void add_normed(MatrixView residual, MatrixView delta, const float* delta_norm,
                          const float* weight, float eps, MatrixView out) = 0;

  // Several weights that share x, in one go (QKV, gate+up). A part's out is of the activation type
  // or float32 (logits, and the residual stream with `accumulate`).
  virtual void linear(MatrixView x, std::span<const LinearPart> parts) = 0;

  // linear(rms_norm(x)): x is float32. `normed` is scratch in the activation type.
  virtual void norm_linear(MatrixView x, const float* norm, float eps, MatrixView normed,
                           std::span<const LinearPart> parts) {
    rms_norm(x, norm, eps, normed);
    linear(normed, parts);
  }

  // parts[0].out = activation(x W_0ᵀ) * (x W_1ᵀ); parts[1].out is scratch. With `norm`, x is
  // float32 and is normalized first (into `normed`); without, it is of the activation type.
  virtual void gated_linear(MatrixView x, const float* norm, float eps, MatrixView normed,
                            std::span<const LinearPart, 2> parts, Activation activation) {
    if (norm != nullptr) {
      rms_norm(x, norm, eps, normed);
    }
    linear(norm != nullptr ? normed : x, parts);
    gated_activation(parts[0].out, parts[1].out, activation, parts[0].out);
  }

  // Each token goes to the per_token experts of the largest softmax(x routerᵀ), the lower number
  // first where two are equal: out (+)= the sum over those that this rank has, by rising number, of
  // weight * down(activation(gate x) * up x). Rows of an expert are multiplied together. x is of
  // the activation type, out too or, with `accumulate`, float32. `scratch`: expert_scratch_bytes().
  virtual void experts(MatrixView x, const ExpertLayer& layer, MatrixView scratch, MatrixView out,
                       bool accumulate) = 0;
  virtual int64_t expert_scratch_bytes(const ExpertShape& shape, int64_t tokens) const = 0;

  virtual void prepare_qkv(const QkvPrepare& qkv, std::span<const AttentionRow> rows,
                           const KvLayerView& kv) = 0;

  // out[tokens, q_heads * head_dim] = softmax(q Kᵀ scale) V, causal, over the paged KV.
  virtual void paged_attention(MatrixView q, const AttentionParams& params,
                               std::span<const AttentionRow> rows, const KvLayerView& kv,
                               MatrixView out) = 0;

  // prepare_qkv and paged_attention; q is scratch afterwards.
  virtual void attention(const QkvPrepare& qkv, const AttentionParams& params,
                         std::span<const AttentionRow> rows, const KvLayerView& kv,
                         MatrixView out) {
    prepare_qkv(qkv, rows, kv);
    paged_attention(qkv.q, params, rows, kv, out);
  }

  // out = activation(gate) * up. out may be gate.
  virtual void gated_activation(MatrixView gate, MatrixView up, Activation activation,
                                MatrixView out) = 0;

  // to row i of out: row indices[i] of x (the last token of each sequence, before the head); both
  // float32.
  virtual void gather_rows(MatrixView x, std::span<const int32_t> indices, MatrixView out) = 0;

  // to = from; of the same shape and type, contiguous.
  virtual void copy(MatrixView from, MatrixView to);

  // Every byte of the matrix.
  virtual void fill_bytes(MatrixView x, uint8_t value) = 0;
};

// Instruction sets of the CPU backend, weakest first. The last one multiplies bf16 weights by dot
// products of bf16 (docs/adr/0021), and is avx512 for all else.
enum class CpuIsa : uint8_t { kReference, kAvx2, kAvx512, kAvx512Bf16 };
constexpr CpuIsa kCpuIsas[] = {CpuIsa::kReference, CpuIsa::kAvx2, CpuIsa::kAvx512,
                               CpuIsa::kAvx512Bf16};
const char* to_string(CpuIsa isa);
// The set of that name, if there is one.
std::optional<CpuIsa> cpu_isa_of(std::string_view name);

// The fastest set of this machine, by what its processor is, not by a measurement: a result should
// not depend on the time. TRIREME_CPU_ISA names another one; kInvalidArgument if the machine lacks
// it.
CpuIsa best_cpu_isa();

// Throws kInvalidArgument if this machine lacks `isa`. `pool` must outlive the backend.
std::unique_ptr<Backend> make_cpu_backend(ThreadPool& pool, CpuIsa isa);

}  // namespace trireme
