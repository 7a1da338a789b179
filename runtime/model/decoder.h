// The transformer on one rank: its stage's layers, its tensor slice.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "parallel/layout.h"
#include "parallel/ledger.h"
#include "runtime/model/config.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/prefill_parts.h"
#include "runtime/model/tensor_sums.h"
#include "runtime/model/weight_source.h"

namespace trireme {

// Vectors are float32 in the backend's memory, empty where the layer has none.
struct LayerWeights {
  Buffer attn_norm, ffn_norm, q_norm, k_norm;
  Buffer attn_post_norm, ffn_post_norm;
  Buffer q_bias, k_bias, v_bias, o_bias;
  Weight q, k, v, o, gate, up, down;
  Weight router;                                            // all experts', on every rank
  std::vector<Weight> expert_gate, expert_up, expert_down;  // of the rank's experts
};

// What one rank keeps of a model.
struct DecoderWeights {
  Part vocab;    // rows of embed and head
  Weight embed;  // first stage; with tied embeddings also the last stage's head
  Weight head;   // last stage, untied
  Buffer norm;   // last stage
  std::vector<LayerWeights> layers;

  int64_t bytes() const;
};

// Bytes that load_weights will hold on this rank, from the shapes alone (a backend's packing adds
// alignment only).
int64_t weight_bytes(const WeightSource& source, const ParallelLayout& layout, int rank,
                     const Backend& backend);

// Reads and packs this rank's slices, touching no others. `progress` (optional) hears bytes done of
// bytes to do.
DecoderWeights load_weights(const WeightSource& source, const ParallelLayout& layout, int rank,
                            Backend& backend,
                            const std::function<void(int64_t, int64_t)>& progress = {});

// A step's work in the decoder's terms. Rows give token_begin/count/position; `tables[g][i]` is the
// block table of row i in KV group g.
struct DecoderBatch {
  std::span<const int32_t> tokens;       // used on the first stage
  std::span<const int32_t> token_slots;  // as StepInputs::token_slots
  std::span<const AttentionRow> rows;
  std::vector<std::vector<const int32_t*>> tables;
  std::span<const int32_t> logit_tokens;  // indices of tokens whose logits are wanted
};

class Decoder {
 public:
  // `sums` adds up among this stage's tensor ranks. All references must outlive the decoder.
  // `max_tokens`: the largest batch; scratch for it is allocated here and nowhere later.
  // `max_logits`: the most logit_tokens of a batch; 0 means max_tokens. Throws kUnimplemented for
  // what no op computes yet (a softcap on logits).
  Decoder(const ModelConfig& config, const ParallelLayout& layout, int rank, DecoderWeights weights,
          Backend& backend, TensorSums& sums, int64_t max_tokens, int64_t max_logits = 0);

  // Bytes of that scratch, for the memory account.
  static int64_t scratch_bytes(const ModelConfig& config, const ParallelLayout& layout, int rank,
                               const Backend& backend, int64_t max_tokens, int64_t max_logits = 0);

  const DecoderWeights& weights() const { return weights_; }

  // Makes the step's inputs known to the backend. The batch, what it points at and the cache must
  // stay until the next begin().
  void begin(const DecoderBatch& batch, const KvGroups& groups, const KvCache& cache);
  // This stage's layers, KV written and read through the batch's block tables: from the tokens'
  // embeddings on the first stage, from hidden() (filled from the stage edge) on the others.
  void forward();
  // Last stage: logits of these tokens of the batch over this rank's part of the vocabulary,
  // [tokens, vocab.count] float32 in the backend's memory, valid until the next call.
  MatrixView logits(std::span<const int32_t> tokens);

  // Operations within what the backend replays are written there; null: nowhere.
  void set_ledger(Ledger* ledger) { ledger_ = ledger; }

  // Called four times a layer, for what must not wait until the step has ended. Not for backends
  // that replay.
  void set_interlude(std::function<void()> work) { interlude_ = std::move(work); }

  // For TensorSums::tune().
  SumBuffers sum_buffers() const;

  // [tokens, hidden], contiguous, float32: what passes between stages.
  MatrixView hidden(int64_t tokens);

  // Where there are several tensor ranks, a prefill may be cut in two parts, so that one part's
  // sums run beside the other's products. The same on all of them; results do not depend on it.
  void set_parts(PrefillParts parts) { parts_ = std::move(parts); }
  const PrefillParts& parts() const { return parts_; }
  // Whether it is worth measuring: the backend has streams for it, and nobody has decided.
  bool parts_are_open() const { return sums_.has_streams() && !parts_.decided(); }

  // For measurements: only the stage's first so many layers, 0 for all; steps without the sums over
  // the tensor ranks; the results of both mean nothing. And these sums alone, as a step of `tokens`
  // tokens has them.
  void limit_layers(size_t most) { most_layers_ = most; }
  void omit_sums(bool omit);
  void sum_only(int64_t tokens);

 private:
  struct Scratch;
  void interlude() {
    if (interlude_) interlude_();
  }
  void repeat(const RepeatKey& key, const std::function<void()>& work);
  void run_layers(int64_t tokens);
  void run_layers_in_parts(int64_t tokens, int64_t cut);
  size_t layer_count() const;
  void embed(int64_t tokens);
  void add(int64_t tokens, const Buffer& post_norm, const Buffer* norm);
  void attention_input(int layer, Part tokens, bool normed);
  void attention(int layer, int64_t tokens);
  void attention_output(int layer, Part tokens, bool normed);
  void feed_forward(int layer, Part tokens, bool normed);
  void experts(int layer, Part tokens, bool normed);
  MatrixView head(std::span<const int32_t> tokens, int64_t rows);

  const ModelConfig& config_;
  const ParallelLayout& layout_;
  int rank_;
  DecoderWeights weights_;
  Backend& backend_;
  TensorSums& sums_;
  Ledger* ledger_ = nullptr;
  std::function<void()> interlude_;
  std::map<RepeatKey, std::vector<LedgerCall>> tapes_;  // of what is replayed
  bool apart_ = false;  // blocks' outputs are added to the residual by ops of their own
  PrefillParts parts_;
  bool omits_sums_ = false;
  size_t most_layers_ = 0;
  std::shared_ptr<Scratch> scratch_;  // shared only so that Scratch can stay incomplete here
};

}  // namespace trireme
