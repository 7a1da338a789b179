// Sums over tensor ranks by a backend's own kernels, in memory that the ranks map from each other.
#pragma once

#include <cstdint>

#include "base/matrix_view.h"

namespace trireme {

// One shot: every rank sends its terms to all and adds all. Two shots: each adds a part, and sends
// that sum, rounded to the type of the terms, to all.
enum class PeerShots : uint8_t { kOne = 1, kTwo = 2 };

// Queued on the backend's stream, in the same order on all ranks. Terms are added in the order of
// the ranks, in float32: every rank comes to the same bits.
class PeerSums {
 public:
  virtual ~PeerSums() = default;

  // Whether a matrix of contiguous rows, of equal shape on all ranks, is taken.
  virtual bool takes(int64_t rows, int64_t cols, DType dtype) const = 0;
  // x = the sum over ranks of x. `blocks` share the work; 0: as many as it takes at least.
  virtual void sum(MatrixView x, PeerShots shots, int blocks) = 0;
  // Backend::add_rms_norm of the sum over ranks of `delta`, which is of the activation type.
  virtual void add_rms_norm(MatrixView residual, MatrixView delta, const float* weight, float eps,
                            MatrixView out, PeerShots shots) = 0;
};

}  // namespace trireme
