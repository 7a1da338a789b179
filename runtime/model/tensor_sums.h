// How the partial sums of a stage's tensor ranks become whole: through their communicator, or by
// kernels of the backend in memory that the ranks map from each other, where that is faster.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "parallel/communicator.h"

namespace trireme {

// One way to make a sum, and what it took.
struct SumChoice {
  enum class Way : uint8_t { kCommunicator, kOneShot, kTwoShots };
  int64_t bytes = 0;  // of the matrix: the choice is for up to so many
  Way way = Way::kCommunicator;
  int32_t blocks = 0;       // of a kernel of ours; 0: as few as it can be
  double microseconds = 0;  // 0: not measured
};
const char* to_string(SumChoice::Way way);

// By rising bytes; beyond the last, the communicator.
struct SumTable {
  std::vector<SumChoice> fused;  // residual += sum of delta, and the norm
  std::vector<SumChoice> plain;  // float32
  const SumChoice& of(bool is_fused, int64_t bytes) const;
};

// What sums are measured on: the decoder's own matrices, of as many rows as a step may have. Memory
// that NCCL has once seen in a graph must stay, since the peers may have mapped it.
struct SumBuffers {
  MatrixView residual;  // float32
  MatrixView delta;     // of the activation type, like `out`
  MatrixView out;
  const float* norm = nullptr;
};

class TensorSums {
 public:
  // `tp`: the ranks whose terms are summed; device memory where the backend's is. `peers` may be
  // null. References must outlive this. TRIREME_ALL_REDUCE=communicator|one-shot|two-shots takes
  // one way wherever it can be taken; another value throws kInvalidArgument.
  TensorSums(Communicator& tp, Backend& backend, std::unique_ptr<PeerSums> peers = nullptr);

  int size() const { return tp_.size(); }
  // x = the sum over ranks of x: identical bits everywhere.
  void add_up(MatrixView x);
  // Backend::add_rms_norm of the sum over ranks of `delta`, which is scratch afterwards.
  void add_rms_norm(MatrixView residual, MatrixView delta, const float* weight, float eps,
                    MatrixView out);

  // add_rms_norm() in two halves: the sum begins after what is queued, and ops that are queued
  // between the two run beside it, where the backend has streams. A sum for each `part` (0 or 1)
  // may be on its way; they end in the order in which they began. `delta` as in add_rms_norm().
  void begin(int part, MatrixView delta);
  void end(int part, MatrixView residual, MatrixView delta, const float* weight, float eps,
           MatrixView out);
  // Whether sums can run beside ops at all.
  bool has_streams() const { return beside_ != nullptr; }

  // For measurements: every rank keeps its own terms for the sum.
  void omit(bool omit) { omitted_ = omit; }

  // Measures every way and takes the fastest of each size: the same on all ranks. Overwrites the
  // buffers. Collective over `host`, the same ranks in host memory. Nothing to do without peers.
  void tune(Communicator& host, const SumBuffers& buffers);
  bool has_peers() const { return peers_ != nullptr; }
  // What is in force; empty without peers.
  const SumTable& table() const { return table_; }
  void set_table(SumTable table) { table_ = std::move(table); }
  // A line for each size, for the log.
  std::vector<std::string> describe() const;

 private:
  SumChoice choose(bool fused, int64_t rows, int64_t cols, DType dtype) const;
  void run_plain(const SumChoice& choice, MatrixView x);
  void run_fused(const SumChoice& choice, MatrixView residual, MatrixView delta,
                 const float* weight, float eps, MatrixView out);

  struct Part {
    std::unique_ptr<StreamMark> computed, summed;
  };

  Communicator& tp_;
  Backend& backend_;
  std::unique_ptr<PeerSums> peers_;
  std::unique_ptr<SideStream> beside_;  // of begin()
  std::array<Part, 2> parts_;
  SumTable table_;
  bool forced_ = false;
  bool omitted_ = false;
  SumChoice::Way forced_way_ = SumChoice::Way::kCommunicator;
};

}  // namespace trireme
