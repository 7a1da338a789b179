// Mixture of experts: a router's choice, then the rows of each expert multiplied together.
//
// Experts run one after the other, by rising number, and each adds to its rows' outputs: a row's
// sums are in an order that the other rows do not change.
#pragma once

#include <functional>

#include "kernels/backend.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/ops.h"

namespace trireme::cpu {

class Experts {
 public:
  // Calls each(row) for every row < rows, on all threads where rows * cols pays.
  using ForRows =
      std::function<void(int64_t rows, int64_t cols, const std::function<void(int64_t row)>& each)>;
  Experts(Linear& linear, const Ops& ops, ForRows for_rows)
      : linear_(linear), ops_(ops), for_rows_(std::move(for_rows)) {}

  static int64_t scratch_bytes(const ExpertShape& shape, int64_t tokens);
  void run(MatrixView x, const ExpertLayer& layer, MatrixView scratch, MatrixView out,
           bool accumulate);

 private:
  struct Scratch;
  static Scratch carve(std::byte* base, const ExpertShape& shape, int64_t tokens);
  void route(MatrixView x, const ExpertLayer& layer, const Scratch& s);
  void run_expert(MatrixView x, const ExpertLayer& layer, int expert, const Scratch& s,
                  MatrixView out);

  Linear& linear_;
  const Ops& ops_;
  ForRows for_rows_;
};

}  // namespace trireme::cpu
