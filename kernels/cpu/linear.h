// linear() over packed weights: prepares the activations once, splits the panels of all parts
// evenly over the threads, and walks them in cache-sized chunks.
#pragma once

#include <span>

#include "base/buffer.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/weight_memory.h"

namespace trireme::cpu {

// Every thread packs the panels that it will multiply. Throws kInvalidArgument for a slice that is
// not one (kernels/weight.h) and kResourceExhausted.
Weight pack_weight(ThreadPool& pool, const Ops& ops, const WeightSlice& slice,
                   WeightMemory& memory);

// out[0, weight.col_count): row `row` of a packed weight in float32. `scratch` grows as needed.
void read_weight_row(const Ops& ops, const Weight& weight, int64_t row, Buffer& scratch,
                     float* out);

class Linear {
 public:
  Linear(ThreadPool& pool, const Ops& ops) : pool_(pool), ops_(ops) {}

  void run(MatrixView x, std::span<const LinearPart> parts);

 private:
  // The activations in the form that the parts' kernels take: one for most calls, several where
  // parts differ in format or in the columns they hold.
  struct Prepared {
    TileKind kind = TileKind::kF32;
    int tile_rows = 0;
    int64_t cols = 0;
    int64_t col_begin = 0;
    int64_t row_bytes = 0;
    const std::byte* data = nullptr;
    size_t offset = 0;
    std::span<const int32_t> order;  // as in Weight
  };
  static constexpr int kMaxParts = 16;

  void prepare(MatrixView x, std::span<const LinearPart> parts);
  void fill_tile(MatrixView x, const Prepared& form, int64_t row_begin, int rows,
                 float* scratch) const;
  static void arrange_row(const float* x, int64_t cols, const Prepared& form, float* out);
  void run_thread(MatrixView x, std::span<const LinearPart> parts, int thread) const;
  void run_panels(const LinearPart& part, const Prepared& form, int64_t tokens, int64_t panel_begin,
                  int64_t panel_end, float* acc) const;

  ThreadPool& pool_;
  const Ops& ops_;
  const bool fetches_ahead_ = cpu::fetches_ahead();
  Prepared forms_[kMaxParts];
  int form_of_part_[kMaxParts] = {};
  int form_count_ = 0;
  Buffer activations_;
  Buffer thread_scratch_;
  size_t scratch_per_thread_ = 0;
};

}  // namespace trireme::cpu
