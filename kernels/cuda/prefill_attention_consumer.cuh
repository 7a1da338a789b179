// The Hopper kernel's consumers: products, online softmax, output.
#pragma once

#include "kernels/cuda/prefill_attention_hopper.cuh"

namespace trireme::cuda::hopper {

// What a consumer thread keeps of its two queries (rows lane / 4 and eight below) of a work item.
template <class S>
struct Softmax {
  float anchor[2];      // weights are 2^(scaled logit - anchor)
  float total[2];       // of weights, over this thread's columns
  float correction[2];  // what earlier sums must be multiplied by, if apply() said so

  __device__ __forceinline__ void reset() {
    anchor[0] = anchor[1] = -INFINITY;
    total[0] = total[1] = 0.0f;
  }

  // Turns logits into weights. The anchor follows the largest logit only when that has grown by
  // more than a factor of 2^kSlack: float32 sums do not mind, and the output is seldom rescaled.
  // Returns whether it must be, for this warp.
  // `offset`: the first query's position - the tile's first - this thread's first column.
  // kEdge: some keys are not to be seen, or logits are capped.
  template <bool kEdge>
  __device__ __forceinline__ bool apply(float (&logits)[S::kCols / 2], float scale,
                                        const PrefillAttention& args, int offset) {
    constexpr float kSlack = 8.0f;
    if constexpr (kEdge) hide(logits, args, offset);
    float most[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float m = fmaxf(logits[2 * half], logits[2 * half + 1]);
#pragma unroll
      for (int i = 4 + 2 * half; i < S::kCols / 2; i += 4) {
        m = fmaxf(m, fmaxf(logits[i], logits[i + 1]));
      }
      most[half] = quad_max(m) * scale;
    }
    const bool rescale =
        __any_sync(0xffffffffu, most[0] > anchor[0] + kSlack || most[1] > anchor[1] + kSlack);
    if (rescale) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float next = fmaxf(anchor[half], most[half]);
        // A query that has seen nothing yet: no NaN from infinity less infinity.
        correction[half] = next == -INFINITY ? 0.0f : exp2_fast(anchor[half] - next);
        anchor[half] = next;
        total[half] *= correction[half];
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float less = kEdge && anchor[half] == -INFINITY ? 0.0f : -anchor[half];
      float sum = 0.0f;
#pragma unroll
      for (int i = 2 * half; i < S::kCols / 2; i += 4) {
        logits[i] = exp2_fast(fmaf(logits[i], scale, less));
        logits[i + 1] = exp2_fast(fmaf(logits[i + 1], scale, less));
        sum += logits[i] + logits[i + 1];
      }
      total[half] += sum;
    }
    return rescale;
  }

  __device__ __forceinline__ static void hide(float (&logits)[S::kCols / 2],
                                              const PrefillAttention& args, int offset) {
    if (args.softcap > 0.0f) {
      const float doubled = 2.0f * kLog2E * args.scale / args.softcap;
      const float cap = args.softcap / args.scale;
#pragma unroll
      for (int i = 0; i < S::kCols / 2; ++i) {
        logits[i] = soft_capped(logits[i] * doubled, cap);
      }
    }
    hide_columns(logits, [&](int half, int column) { return column > offset + half * 8; });
    if (args.window > 0) {
      const int before = offset - args.window;
      hide_columns(logits, [&](int half, int column) { return column <= before + half * 8; });
    }
  }

  // `hidden` of which of the thread's two queries, and the column less the thread's first.
  template <class Hidden>
  __device__ __forceinline__ static void hide_columns(float (&logits)[S::kCols / 2],
                                                      const Hidden& hidden) {
#pragma unroll
    for (int i = 0; i < S::kCols / 2; ++i) {
      if (hidden(i / 2 % 2, i / 4 * 8 + i % 2)) logits[i] = -INFINITY;
    }
  }
};

template <class S>
struct Consumer {
  const PrefillAttention& args;
  Barriers<S>& barriers;
  uint32_t q_tile, k_tiles, v_tiles;
  int consumer;  // 0 or 1
  Place<S::kStages> k_place, v_place;
  float scale;        // of logits, to powers of two
  int thread_offset;  // position of this thread's first query less its first column
  int tiles;          // of the work item
  bool accumulate;    // `out` holds a part of the sum
  float out[S::kOutParts][S::kOutWidth / 2];
  uint32_t weights[S::kCols / 16][4];
  uint32_t queries[S::kQueriesInRegisters ? S::kDim / 16 : 1][4];
  Softmax<S> softmax;

  __device__ __forceinline__ void release(uint64_t* barrier) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(shared_address(barrier));
  }

  __device__ __forceinline__ void multiply_keys(float (&logits)[S::kCols / 2]) {
    const uint32_t k = matrix_descriptor(k_tiles + k_place.index * S::kKeyBytes, 16);
    const uint32_t q = matrix_descriptor(q_tile + consumer * 64 * kSlabBytes, 16);
#pragma unroll
    for (int d = 0; d < S::kDim / 16; ++d) {
      const int inside = d % 4 * 32;
      const uint32_t k_part = k + ((d / 4 * S::kKeySlab + inside) >> 4);
      if constexpr (S::kQueriesInRegisters) {
        wgmma_registers<false>(logits, queries[d], k_part, d > 0);
      } else {
        wgmma_shared(logits, q + ((d / 4 * S::kQuerySlab + inside) >> 4), k_part, d > 0);
      }
    }
  }

  __device__ __forceinline__ void load_queries() {
    const int row = consumer * 64 + threadIdx.x % kGroupThreads / 32 * 16 + threadIdx.x % 16;
#pragma unroll
    for (int d = 0; d < S::kDim / 16; ++d) {
      const uint32_t from = q_tile + query_offset<S>(row, d * 2 + threadIdx.x % 32 / 16);
      load_matrices(queries[d], from);
    }
  }

  __device__ __forceinline__ void multiply_values() {
    const uint32_t v = matrix_descriptor(v_tiles + v_place.index * S::kKeyBytes, S::kKeySlab);
#pragma unroll
    for (int n = 0; n < S::kCols / 16; ++n) {
#pragma unroll
      for (int part = 0; part < S::kOutParts; ++part) {
        const int offset = part * (S::kOutWidth / 64) * S::kKeySlab + n * 16 * kSlabBytes;
        wgmma_registers<true>(out[part], weights[n], v + (offset >> 4), accumulate || n > 0);
      }
    }
  }

  __device__ __forceinline__ void pack_weights(const float (&logits)[S::kCols / 2]) {
#pragma unroll
    for (int i = 0; i < S::kCols / 4; ++i) {
      weights[i / 4][i % 4] = pack(logits[2 * i], logits[2 * i + 1]);
    }
  }

  // Values past the last query's position may be anything, and 0 * NaN is NaN: zeros for them.
  __device__ __forceinline__ void clear_values(int from) {
    const uint32_t tile = v_tiles + v_place.index * S::kKeyBytes;
    const int chunks = (S::kCols - from) * 8;
    constexpr int kThreadsHere = kConsumers * kGroupThreads;
    for (int i = threadIdx.x - kGroupThreads; i < chunks * S::kSlabs; i += kThreadsHere) {
      const uint32_t to = tile + i / chunks * S::kKeySlab + from * kSlabBytes + i % chunks * 16;
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
    }
    fence_async_proxy();
    sync_named(kZeros, kThreadsHere);
  }

  // The logits of the first key tile of all; the steps that follow start from weights.
  __device__ __forceinline__ void begin() {
    float logits[S::kCols / 2];
    barrier_wait(shared_address(&barriers.key_full[k_place.index]), k_place.parity);
    wgmma_fence();
    multiply_keys(logits);
    wgmma_commit();
    wgmma_wait<0>();
    pin(logits);
    release(&barriers.key_empty[k_place.index]);
    k_place.advance();
    softmax.reset();
    softmax.template apply<true>(logits, scale, args, thread_offset - (tiles - 1) * S::kCols);
    pack_weights(logits);
    accumulate = false;
  }

  // The logits and softmax of key tile j over the product of the weights before with their values.
  // kFirst: j is the first of a new work item, and the product completes `done`, the one before.
  template <bool kEdge, bool kFirst>
  __device__ __forceinline__ void step(int j, const Work& done) {
    float logits[S::kCols / 2];
    barrier_wait(shared_address(&barriers.key_full[k_place.index]), k_place.parity);
    barrier_wait(shared_address(&barriers.value_full[v_place.index]), v_place.parity);
    if constexpr (S::kTurns) sync_named(kTurn + consumer, kConsumers * kGroupThreads);
    wgmma_fence();
    multiply_keys(logits);
    wgmma_commit();
    multiply_values();
    wgmma_commit();
    if constexpr (S::kTurns) arrive_named(kTurn + 1 - consumer, kConsumers * kGroupThreads);
    wgmma_wait<1>();
    pin(logits);
    release(&barriers.key_empty[k_place.index]);
    k_place.advance();
    const Softmax<S> before = softmax;
    if constexpr (kFirst) softmax.reset();
    const bool rescale =
        softmax.template apply<kEdge>(logits, scale, args, thread_offset - j * S::kCols);
    pin(logits);
    // Before the branch: all warps of the group must come to the same wait.
    wgmma_wait<0>();
    pin_out();
    if constexpr (!kFirst) {
      if (rescale) {
#pragma unroll
        for (int part = 0; part < S::kOutParts; ++part) {
#pragma unroll
          for (int i = 0; i < S::kOutWidth / 2; ++i) out[part][i] *= softmax.correction[i / 2 % 2];
        }
      }
    }
    release(&barriers.value_empty[v_place.index]);
    v_place.advance();
    if constexpr (kFirst) store(done, before);
    pack_weights(logits);
    accumulate = !kFirst;
  }

  __device__ __forceinline__ void finish(const Work& done) {
    barrier_wait(shared_address(&barriers.value_full[v_place.index]), v_place.parity);
    wgmma_fence();
    multiply_values();
    wgmma_commit();
    wgmma_wait<0>();
    pin_out();
    store(done, softmax);
  }

  __device__ __forceinline__ void pin_out() {
#pragma unroll
    for (int part = 0; part < S::kOutParts; ++part) pin(out[part]);
  }

  // All the block's work. The last product of a work item runs under the first softmax of the next.
  __device__ __forceinline__ void run() {
    const int group_row = consumer * 64;
    scale = args.scale * kLog2E;
    Work done{};
    for (uint32_t parity = 0;; parity ^= 1) {
      barrier_wait(shared_address(&barriers.query_full), parity);
      const Work work = barriers.work;
      if (work.tiles == 0) break;
      if constexpr (S::kQueriesInRegisters) {
        load_queries();
        barrier_arrive(shared_address(&barriers.query_empty));
      }
      const int first = work.first - work.base;  // positions below count from the first key's
      thread_offset = first + thread_row() - threadIdx.x % 4 * 2;
      tiles = work.tiles;
      if (done.tiles == 0) {
        begin();
      } else {
        step<true, true>(tiles - 1, done);
      }
      done = work;
      const int past = first + work.count - (tiles - 1) * S::kCols;  // keys that the last tile has
      if (past < S::kCols) {
        barrier_wait(shared_address(&barriers.value_full[v_place.index]), v_place.parity);
        clear_values(past);
      }
      for (int j = tiles - 2; j >= 0; --j) {
        const int begin = j * S::kCols;
        const bool edge = args.softcap > 0.0f || begin + S::kCols - 1 > first + group_row ||
                          (args.window > 0 && begin <= first + group_row + 63 - args.window);
        if (edge) {
          step<true, false>(j, done);
        } else {
          step<false, false>(j, done);
        }
      }
      if constexpr (!S::kQueriesInRegisters) barrier_arrive(shared_address(&barriers.query_empty));
    }
    if (done.tiles > 0) finish(done);
  }

  __device__ __forceinline__ int thread_row() const {
    return consumer * 64 + threadIdx.x % kGroupThreads / 32 * 16 + threadIdx.x % 32 / 4;
  }

  // A quad holds eight columns of a row in four lanes; four such groups are transposed so that a
  // lane stores one of them whole.
  __device__ __forceinline__ void store(const Work& work, const Softmax<S>& sums) {
    const int quad_lane = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(sums.total[half]);
      const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
      const int row = thread_row() + half * 8;
      const int64_t offset =
          (int64_t{work.token + row} * args.q_heads + work.head) * int64_t{args.kv.head_dim};
#pragma unroll
      for (int group = 0; group < S::kDim / 32; ++group) {
        uint32_t w[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const int column = (group * 4 + n) * 8;
          const float* from = &out[column / S::kOutWidth][column % S::kOutWidth / 2 + half * 2];
          w[n] = pack(from[0] * inverse, from[1] * inverse);
        }
        transpose_quad(w, quad_lane);
        const int column = (group * 4 + quad_lane) * 8;
        if (row < work.count && column < args.kv.head_dim) {
          *reinterpret_cast<uint4*>(static_cast<Element*>(args.out) + offset + column) =
              make_uint4(w[0], w[1], w[2], w[3]);
        }
      }
    }
  }

  // w[n] of lane l and w[l] of lane n change places.
  static __device__ __forceinline__ void transpose_quad(uint32_t (&w)[4], int lane) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
      const bool high = (lane & bit) != 0;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (n & bit) continue;
        const uint32_t got = __shfl_xor_sync(0xffffffffu, high ? w[n] : w[n + bit], bit);
        if (high) {
          w[n] = got;
        } else {
          w[n + bit] = got;
        }
      }
    }
  }
};

}  // namespace trireme::cuda::hopper
