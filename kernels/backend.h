// The operations that a decoder needs, and nothing else. The CPU backend is the reference: an op
// lands there first, and one test body runs on every backend.
//
// Ops take views and never allocate per call (a backend may keep scratch that grows to the largest
// batch seen). Activations are [tokens, features], row-major. All views of one call are of one
// dtype, the backend's activation_dtype(), unless said otherwise. Shapes are the caller's promise
// (checked by assertions in debug builds); unsupported combinations are refused by make_weight and
// by supports_kv, at load, never mid-step.
//
// Row independence: on the CPU backend the result for a row depends neither on the other rows of
// the call nor on how a prompt is cut into chunks; sums run in one fixed order. This is what makes
// "the same tokens whatever the batch" exact.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/matrix_view.h"
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
};

// Consecutive tokens of one sequence within a step's flattened token batch.
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
  int q_heads = 0;         // a multiple of the layer's kv_heads on this rank
  float scale = 0.0f;      // usually 1/sqrt(head_dim)
  int window = 0;          // a token sees positions > p - window; 0 = all
  float softcap = 0.0f;    // s = softcap * tanh(s / softcap); 0 = off
};

enum class Activation : uint8_t { kSilu, kGeluTanh };

// One candidate of a row: a logit and the token it belongs to (global id).
struct Candidate {
  float logit = 0.0f;
  int32_t token = -1;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string description() const = 0;  // e.g. "cpu avx512-vnni, 2 threads"
  virtual DType activation_dtype() const = 0;
  virtual bool supports_kv(DType dtype, int head_dim) const = 0;

  // Packs a slice for linear() (and embed()), at the slice's own size up to alignment.
  // Throws kUnimplemented for a format this backend cannot hold.
  virtual Weight make_weight(const WeightSlice& slice) = 0;

  // out[i] = row tokens[i] - vocab_begin of table, or zeros where that row is not of this slice;
  // times `scale`.
  virtual void embed(std::span<const int32_t> tokens, const Weight& table, int64_t vocab_begin,
                     float scale, MatrixView out) = 0;

  // out = x / rms(x) * weight, rms over cols with eps inside the root. out may be x.
  virtual void rms_norm(MatrixView x, const float* weight, float eps, MatrixView out) = 0;

  // residual += delta; out = rms_norm(residual). weight == nullptr: only the addition.
  virtual void add_rms_norm(MatrixView residual, MatrixView delta, const float* weight, float eps,
                            MatrixView out) = 0;

  // Several weights that share x, in one go (QKV, gate+up).
  virtual void linear(MatrixView x, std::span<const LinearPart> parts) = 0;

  virtual void prepare_qkv(const QkvPrepare& qkv, std::span<const AttentionRow> rows,
                           const KvLayerView& kv) = 0;

  // out[tokens, q_heads * head_dim] = softmax(q Kᵀ scale) V, causal, over the paged KV.
  virtual void paged_attention(MatrixView q, const AttentionParams& params,
                               std::span<const AttentionRow> rows, const KvLayerView& kv,
                               MatrixView out) = 0;

  // out = activation(gate) * up. out may be gate.
  virtual void gated_activation(MatrixView gate, MatrixView up, Activation activation,
                                MatrixView out) = 0;

  // to row i of out: row indices[i] of x (the last token of each sequence, before the head).
  virtual void gather_rows(MatrixView x, std::span<const int32_t> indices, MatrixView out) = 0;
};

// Instruction sets of the CPU backend, weakest first.
enum class CpuIsa : uint8_t { kReference, kAvx2, kAvx512 };
const char* to_string(CpuIsa isa);

// The best set this machine can run (TRIREME_CPU_ISA=reference|avx2|avx512 lowers it).
CpuIsa best_cpu_isa();

// Throws kInvalidArgument if this machine lacks `isa`. `pool` must outlive the backend.
std::unique_ptr<Backend> make_cpu_backend(ThreadPool& pool, CpuIsa isa);

}  // namespace trireme
