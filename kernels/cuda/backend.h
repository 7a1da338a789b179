// The ops of kernels/backend.h on one GPU: weights, activations and KV cache of one element type
// (element.h); residual stream, sums and logits float32.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/cuda/element.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/peer_lanes.h"
#include "kernels/cuda/step_arena.h"
#include "kernels/cuda/step_timer.h"
#include "kernels/cuda/weight_upload.h"

namespace trireme::cuda {

class CudaBackend final : public Backend {
 public:
  CudaBackend(ThreadPool& pool, int device);
  ~CudaBackend() override;

  std::string description() const override { return description_; }
  DType activation_dtype() const override { return kElement; }
  bool supports_kv(const KvShape& shape) const override;
  int64_t max_logit_rows() const override { return 256; }
  double operations_per_byte() const override { return 250; }  // an H100's, about
  int64_t width_multiple() const override { return 8; }

  MachineLimits measure_limits(QuantFormat weights) override;
  std::optional<DeviceMemory> device_memory() const override;
  int64_t workspace_bytes(const WorkspaceShape& shape) const override;
  Buffer allocate(size_t bytes) override;
  Buffer upload(std::span<const float> values) override;
  void* stream() const override { return stream_; }
  void synchronize() override;
  void check() override;
  std::unique_ptr<SideStream> make_side_stream() override;
  std::unique_ptr<StreamMark> make_mark() override;
  StepTimer* step_timer() override { return timer_.get(); }
  MatrixView read_back(MatrixView view) override;
  std::unique_ptr<LogitRows> make_logit_rows(int32_t slots) override;
  Buffer chosen_tokens(int32_t slots) override;
  size_t peer_bytes(int ranks, int64_t width) const override;
  std::unique_ptr<PeerSums> make_peer_sums(PeerBuffers peers, int64_t width) override;
  double measure(const std::function<void()>& work, int times) override;

  Weight make_weight(const WeightSlice& slice) override;
  int64_t weight_bytes(const WeightSlice& slice) const override;
  std::vector<Weight> make_weights(std::span<const WeightSlice> slices) override;

  void begin_step(const StepInputs& inputs) override;
  int64_t padded_rows(int64_t rows) const override;
  void repeat(const RepeatKey& key, const std::function<void()>& work) override;
  void forget_recorded() override;

  void embed(std::span<const int32_t> tokens, const Weight& table, int64_t vocab_begin, float scale,
             MatrixView out) override;
  void rms_norm(MatrixView x, const float* weight, float eps, MatrixView out) override;
  void add_rms_norm(MatrixView residual, MatrixView delta, const float* weight, float eps,
                    MatrixView out) override;
  void add_normed(MatrixView residual, MatrixView delta, const float* delta_norm,
                  const float* weight, float eps, MatrixView out) override;
  void linear(MatrixView x, std::span<const LinearPart> parts) override;
  void norm_linear(MatrixView x, const float* norm, float eps, MatrixView normed,
                   std::span<const LinearPart> parts) override;
  void gated_linear(MatrixView x, const float* norm, float eps, MatrixView normed,
                    std::span<const LinearPart, 2> parts, Activation activation) override;
  void experts(MatrixView x, const ExpertLayer& layer, MatrixView scratch, MatrixView out,
               bool accumulate) override;
  int64_t expert_scratch_bytes(const ExpertShape& shape, int64_t tokens) const override;
  void prepare_qkv(const QkvPrepare& qkv, std::span<const AttentionRow> rows,
                   const KvLayerView& kv) override;
  void paged_attention(MatrixView q, const AttentionParams& params,
                       std::span<const AttentionRow> rows, const KvLayerView& kv,
                       MatrixView out) override;
  void attention(const QkvPrepare& qkv, const AttentionParams& params,
                 std::span<const AttentionRow> rows, const KvLayerView& kv,
                 MatrixView out) override;
  void gated_activation(MatrixView gate, MatrixView up, Activation activation,
                        MatrixView out) override;
  void gather_rows(MatrixView x, std::span<const int32_t> indices, MatrixView out) override;
  void copy(MatrixView from, MatrixView to) override;
  void fill_bytes(MatrixView x, uint8_t value) override;

 private:
  // Where one recorded sequence of ops is on its way to being replayed.
  struct Recorded {
    int calls = 0;
    cudaGraphExec_t graph = nullptr;
  };
  void product(Gemm gemm);
  void products(Gemm gemm, std::span<const LinearPart> parts);
  // The step's group of these rows; they are copied now if begin_step() did not name them.
  int group_of(std::span<const AttentionRow> rows, int window, const KvLayerView& kv);
  const int32_t* on_device(std::span<const int32_t> values, bool step, const int32_t* there);
  void decode_attention(const QkvPrepare& qkv, const AttentionParams& params, int group,
                        const KvLayerView& kv, MatrixView out);
  void prefill_attention(MatrixView q, const AttentionParams& params, int group,
                         const KvLayerView& kv, MatrixView out, bool all_rows);
  void run_prepare(const QkvPrepare& qkv, int group, const KvLayerView& kv, bool all_rows);
  void forget_graphs();

  std::string description_;
  int device_ = 0;
  int multiprocessors_ = 0;
  cudaStream_t stream_ = nullptr;
  ThreadPool& pool_;
  std::unique_ptr<WeightUpload> upload_;
  std::unique_ptr<CudaStepTimer> timer_;
  std::unique_ptr<StepArena> arena_;
  std::unique_ptr<CublasGemm> cublas_;
  Buffer skinny_workspace_;
  Buffer decode_workspace_;
  Buffer scratch_ids_;
  Buffer newest_;    // int32 [slots]: the token that was chosen last
  PeerLanes lanes_;  // of size 1: there are no peers
  PeerBuffers peers_;
  std::byte* host_ = nullptr;  // page-locked, of read_back
  size_t host_bytes_ = 0;
  std::map<RepeatKey, Recorded> recorded_;
};

}  // namespace trireme::cuda
