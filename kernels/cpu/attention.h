// Paged attention over fixed partitions of 512 positions, counted from position 0.
//
// Each partition gives a softmax maximum, sum and unnormalized output of its own; partitions are
// merged in order. One long context is therefore shared by all threads, and the result depends
// neither on the number of threads nor on how a prompt was cut into chunks.
#pragma once

#include <span>
#include <vector>

#include "base/buffer.h"
#include "kernels/backend.h"
#include "kernels/cpu/ops.h"

namespace trireme::cpu {

class Attention {
 public:
  Attention(ThreadPool& pool, const Ops& ops) : pool_(pool), ops_(ops) {}

  void run(MatrixView q, const AttentionParams& params, std::span<const AttentionRow> rows,
           const KvLayerView& kv, MatrixView out);

 private:
  struct Call {
    MatrixView q;
    const AttentionParams& params;
    std::span<const AttentionRow> rows;
    const KvLayerView& kv;
    MatrixView out;
  };
  // Query rows that share a KV head: `tokens` x `heads`, at most kAttentionRows.
  struct Item {
    int row = 0;
    int token = 0;  // within the row
    int tokens = 0;
    int kv_head = 0;
    int head = 0;
    int heads = 0;
    int part_begin = 0;
    int part_end = 0;
    int remaining = 0;      // parts not done yet, when split
    int64_t partials = -1;  // where the parts' results go, in floats; -1: not split
    int64_t cost = 0;
  };
  struct Task {
    int item = 0;
    int part_begin = 0;
    int part_end = 0;
  };
  struct Scratch;

  void plan(const Call& call);
  void run_task(const Call& call, const Task& task, const Scratch& scratch);
  void run_part(const Call& call, const Item& item, int part, const Scratch& scratch, float* max,
                float* sum, float* out) const;
  void merge(int rows, int dim, const Scratch& scratch, const float* max, const float* sum,
             const float* out) const;
  void finish(const Call& call, const Item& item, const Scratch& scratch) const;
  Scratch scratch_of(int thread, int head_dim) const;

  ThreadPool& pool_;
  const Ops& ops_;
  std::vector<Item> items_;
  std::vector<Task> tasks_;
  int64_t total_cost_ = 0;
  Buffer partials_;
  Buffer scratch_;
};

// Any head_dim, scalar, one query row at a time over all its positions, sums in double.
void reference_attention(const float* q, float scale, const AttentionParams& params,
                         const AttentionRow& row, int position, const KvLayerView& kv, int kv_head,
                         float* out);

}  // namespace trireme::cpu
