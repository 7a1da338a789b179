#include "kernels/cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>

#include "base/thread_pool.h"

namespace trireme::cpu {
namespace {

constexpr float kLowest = -3.0e38f;     // below any score, and finite: kLowest - kLowest is 0
constexpr int64_t kSerialCost = 65536;  // multiply-adds not worth waking a thread for

int first_position(int position, int window) {
  return window > 0 ? std::max(0, position - window + 1) : 0;
}

void grow(Buffer& buffer, int64_t floats) {
  const auto bytes = static_cast<size_t>(floats) * sizeof(float);
  if (buffer.size() < bytes) buffer = Buffer(bytes + bytes / 2);
}

constexpr int64_t thread_floats(int head_dim) {
  return attention_scratch(head_dim) +
         kAttentionRows * (int64_t{head_dim} + 2 * padded_dim(head_dim) + 5) + 64;
}

// Floats of one partition's results.
int64_t partial_floats(int rows, int head_dim) {
  return int64_t{rows} * (padded_dim(head_dim) + 2);
}

}  // namespace

struct Attention::Scratch {
  float* tile;        // attention_scratch
  float* q;           // [rows][head_dim]
  float* out;         // [rows][padded dim], one part
  float* total;       // the same, merged
  float* max;         // [rows]
  float* sum;         //
  float* total_max;   //
  float* total_sum;   //
  int32_t* position;  //
};

Attention::Scratch Attention::scratch_of(int thread, int head_dim) const {
  const int64_t padded = int64_t{kAttentionRows} * padded_dim(head_dim);
  float* at = scratch_.as<float>() + thread * thread_floats(head_dim);
  const auto take = [&at](int64_t count) {
    float* taken = at;
    at += count;
    return taken;
  };
  Scratch s{};
  s.tile = take(attention_scratch(head_dim));
  s.out = take(padded);
  s.total = take(padded);
  s.q = take(int64_t{kAttentionRows} * head_dim);
  s.max = take(kAttentionRows);
  s.sum = take(kAttentionRows);
  s.total_max = take(kAttentionRows);
  s.total_sum = take(kAttentionRows);
  s.position = reinterpret_cast<int32_t*>(take(kAttentionRows));
  return s;
}

void Attention::plan(const Call& call) {
  items_.clear();
  tasks_.clear();
  total_cost_ = 0;
  const int group = call.params.q_heads / call.kv.kv_heads;
  const int heads = std::min(group, kAttentionRows);
  const int tokens = kAttentionRows / heads;
  for (int r = 0; r < static_cast<int>(call.rows.size()); ++r) {
    const AttentionRow& row = call.rows[static_cast<size_t>(r)];
    for (int token = 0; token < row.count; token += tokens) {
      Item item;
      item.row = r;
      item.token = token;
      item.tokens = std::min(tokens, row.count - token);
      const int low = first_position(row.position + token, call.params.window);
      const int high = row.position + token + item.tokens;
      item.part_begin = low / kAttentionPartition;
      item.part_end = (high - 1) / kAttentionPartition + 1;
      for (int kv_head = 0; kv_head < call.kv.kv_heads; ++kv_head) {
        for (int head = 0; head < group; head += heads) {
          item.kv_head = kv_head;
          item.head = kv_head * group + head;
          item.heads = std::min(heads, group - head);
          item.cost = int64_t{high - low} * item.heads * item.tokens * call.kv.head_dim * 2;
          total_cost_ += item.cost;
          items_.push_back(item);
        }
      }
    }
  }
  // Only items longer than a quarter of a thread's share are split: few, so partials stay small.
  int64_t floats = 0;
  const int64_t share = total_cost_ / (4 * pool_.size());
  for (int i = 0; i < static_cast<int>(items_.size()); ++i) {
    Item& item = items_[static_cast<size_t>(i)];
    const int parts = item.part_end - item.part_begin;
    if (pool_.size() == 1 || parts == 1 || item.cost <= share) {
      tasks_.push_back({i, item.part_begin, item.part_end});
      continue;
    }
    item.partials = floats;
    item.remaining = parts;
    floats += parts * partial_floats(item.tokens * item.heads, call.kv.head_dim);
    for (int part = item.part_begin; part < item.part_end; ++part) {
      tasks_.push_back({i, part, part + 1});
    }
  }
  grow(partials_, floats);
  grow(scratch_, pool_.size() * thread_floats(call.kv.head_dim));
}

void Attention::run(MatrixView q, const AttentionParams& params, std::span<const AttentionRow> rows,
                    const KvLayerView& kv, MatrixView out) {
  const Call call{q, params, rows, kv, out};
  plan(call);
  if (tasks_.size() == 1 || total_cost_ <= kSerialCost) {
    for (const Task& task : tasks_) run_task(call, task, scratch_of(0, kv.head_dim));
    return;
  }
  std::atomic<size_t> next{0};
  const auto body = [&](int thread) {
    const Scratch scratch = scratch_of(thread, kv.head_dim);
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks_.size();) {
      run_task(call, tasks_[i], scratch);
    }
  };
  pool_.run(std::ref(body));
}

void Attention::run_task(const Call& call, const Task& task, const Scratch& scratch) {
  Item& item = items_[static_cast<size_t>(task.item)];
  const AttentionRow& row = call.rows[static_cast<size_t>(item.row)];
  const int dim = call.kv.head_dim;
  const int rows = item.tokens * item.heads;
  for (int i = 0; i < rows; ++i) {
    const int token = item.token + i / item.heads;
    const float* from =
        call.q.f32(row.token_begin + token) + int64_t{item.head + i % item.heads} * dim;
    if (ops_.attend == nullptr) {
      float* to = call.out.f32(row.token_begin + token) + (item.head + i % item.heads) * dim;
      if (task.part_begin != item.part_begin) continue;
      reference_attention(from, call.params.scale, call.params, row, row.position + token, call.kv,
                          item.kv_head, to);
      continue;
    }
    scratch.position[i] = row.position + token;
    for (int d = 0; d < dim; ++d) scratch.q[i * dim + d] = from[d] * call.params.scale;
  }
  if (ops_.attend == nullptr) return;

  const int64_t part_floats = partial_floats(rows, dim);
  const auto partial = [&](int part) {
    return partials_.as<float>() + item.partials + (part - item.part_begin) * part_floats;
  };
  if (item.partials >= 0) {
    float* to = partial(task.part_begin);
    run_part(call, item, task.part_begin, scratch, to, to + rows, to + 2 * rows);
    std::atomic_ref<int> remaining(item.remaining);
    if (remaining.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  }
  std::fill_n(scratch.total_max, rows, kLowest);
  std::fill_n(scratch.total_sum, rows, 0.0f);
  std::fill_n(scratch.total, rows * padded_dim(dim), 0.0f);
  for (int part = item.part_begin; part < item.part_end; ++part) {
    if (item.partials >= 0) {
      const float* from = partial(part);
      merge(rows, dim, scratch, from, from + rows, from + 2 * rows);
    } else {
      run_part(call, item, part, scratch, scratch.max, scratch.sum, scratch.out);
      merge(rows, dim, scratch, scratch.max, scratch.sum, scratch.out);
    }
  }
  finish(call, item, scratch);
}

void Attention::run_part(const Call& call, const Item& item, int part, const Scratch& scratch,
                         float* max, float* sum, float* out) const {
  const AttentionRow& row = call.rows[static_cast<size_t>(item.row)];
  const KvLayerView& kv = call.kv;
  const int64_t head_bytes =
      int64_t{kv.block_size} * kv.head_dim * static_cast<int64_t>(size_of(kv.dtype));
  const int last = row.position + item.token + item.tokens;
  AttentionTile t;
  t.q = scratch.q;
  t.row_position = scratch.position;
  t.rows = item.tokens * item.heads;
  t.head_dim = kv.head_dim;
  t.window = call.params.window;
  t.softcap = call.params.softcap;
  t.k = static_cast<const std::byte*>(kv.k) + item.kv_head * head_bytes;
  t.v = static_cast<const std::byte*>(kv.v) + item.kv_head * head_bytes;
  t.dtype = kv.dtype;
  t.block_stride = head_bytes * kv.kv_heads;
  t.block_size = kv.block_size;
  t.blocks = row.blocks;
  t.begin = std::max(part * kAttentionPartition,
                     first_position(row.position + item.token, call.params.window));
  t.end = std::min((part + 1) * kAttentionPartition, last);
  t.known = item.partials >= 0 ? t.end : last;
  t.scratch = scratch.tile;
  t.max = max;
  t.sum = sum;
  t.out = out;
  ops_.attend(t);
}

void Attention::merge(int rows, int dim, const Scratch& scratch, const float* max, const float* sum,
                      const float* out) const {
  const int padded = padded_dim(dim);
  for (int i = 0; i < rows; ++i) {
    const float top = std::max(scratch.total_max[i], max[i]);
    const float old_scale = std::exp(scratch.total_max[i] - top);
    const float new_scale = std::exp(max[i] - top);
    scratch.total_max[i] = top;
    scratch.total_sum[i] = scratch.total_sum[i] * old_scale + sum[i] * new_scale;
    ops_.blend(scratch.total + i * padded, old_scale, out + i * padded, new_scale, padded);
  }
}

void Attention::finish(const Call& call, const Item& item, const Scratch& scratch) const {
  const AttentionRow& row = call.rows[static_cast<size_t>(item.row)];
  const int dim = call.kv.head_dim;
  for (int i = 0; i < item.tokens * item.heads; ++i) {
    float* to = call.out.f32(row.token_begin + item.token + i / item.heads) +
                int64_t{item.head + i % item.heads} * dim;
    const float inverse = 1.0f / scratch.total_sum[i];
    for (int d = 0; d < dim; ++d) to[d] = scratch.total[i * padded_dim(dim) + d] * inverse;
  }
}

void reference_attention(const float* q, float scale, const AttentionParams& params,
                         const AttentionRow& row, int position, const KvLayerView& kv, int kv_head,
                         float* out) {
  const int dim = kv.head_dim;
  const auto at = [&](const void* base, int p, int d) {
    const int64_t block = row.blocks[p / kv.block_size];
    const int64_t i =
        ((block * kv.kv_heads + kv_head) * kv.block_size + p % kv.block_size) * dim + d;
    switch (kv.dtype) {
      case DType::kF16: return f16_to_f32(static_cast<const uint16_t*>(base)[i]);
      case DType::kBF16: return bf16_to_f32(static_cast<const uint16_t*>(base)[i]);
      case DType::kF32: break;
    }
    return static_cast<const float*>(base)[i];
  };
  const int low = first_position(position, params.window);
  const auto score = [&](int p) {
    double s = 0;
    for (int d = 0; d < dim; ++d) s += static_cast<double>(q[d]) * at(kv.k, p, d);
    s *= scale;
    return params.softcap > 0 ? params.softcap * std::tanh(s / params.softcap) : s;
  };
  double max = -INFINITY, sum = 0;
  std::vector<double> weights;
  for (int p = low; p <= position; ++p) {
    weights.push_back(score(p));
    max = std::max(max, weights.back());
  }
  for (double& w : weights) sum += w = std::exp(w - max);
  std::vector<double> total(static_cast<size_t>(dim), 0.0);
  for (int p = low; p <= position; ++p) {
    const double w = weights[static_cast<size_t>(p - low)];
    for (int d = 0; d < dim; ++d) total[static_cast<size_t>(d)] += w * at(kv.v, p, d);
  }
  for (int d = 0; d < dim; ++d) {
    out[d] = static_cast<float>(total[static_cast<size_t>(d)] / sum);
  }
}

}  // namespace trireme::cpu
