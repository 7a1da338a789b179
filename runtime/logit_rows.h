// Logits in host memory, row by row.
#pragma once

#include "kernels/logit_rows.h"
#include "runtime/sampler_row.h"

namespace trireme {

class HostLogitRows final : public LogitRows {
 public:
  void attach(MatrixView logits, int64_t vocab_begin) override;
  void adjust(std::span<const LogitAdjustment> adjustments) override;
  void answer(std::span<LogitQuestion> questions) override;
  bool splits_buckets() const override { return false; }

 private:
  std::vector<LogitRow> rows_;  // grows to the most rows seen
};

}  // namespace trireme
