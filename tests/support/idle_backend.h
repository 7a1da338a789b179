// A backend whose ops do nothing, for tests that watch what is asked of one and override that.
#pragma once

#include "kernels/backend.h"

namespace trireme {

class IdleBackend : public Backend {
 public:
  std::string description() const override { return "idle"; }
  MachineLimits measure_limits(QuantFormat) override { return {}; }
  bool supports_kv(const KvShape&) const override { return true; }
  void embed(std::span<const int32_t>, const Weight&, int64_t, float, MatrixView) override {}
  void rms_norm(MatrixView, const float*, float, MatrixView) override {}
  void add_rms_norm(MatrixView, MatrixView, const float*, float, MatrixView) override {}
  void add_normed(MatrixView, MatrixView, const float*, const float*, float, MatrixView) override {}
  void linear(MatrixView, std::span<const LinearPart>) override {}
  void experts(MatrixView, const ExpertLayer&, MatrixView, MatrixView, bool) override {}
  int64_t expert_scratch_bytes(const ExpertShape&, int64_t) const override { return 0; }
  void prepare_qkv(const QkvPrepare&, std::span<const AttentionRow>, const KvLayerView&) override {}
  void paged_attention(MatrixView, const AttentionParams&, std::span<const AttentionRow>,
                       const KvLayerView&, MatrixView) override {}
  void gated_activation(MatrixView, MatrixView, Activation, MatrixView) override {}
  void gather_rows(MatrixView, std::span<const int32_t>, MatrixView) override {}
  void fill_bytes(MatrixView, uint8_t) override {}
};

}  // namespace trireme
