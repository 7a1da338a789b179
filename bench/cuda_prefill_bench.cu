// Prefill attention: TFLOP/s of the causal products (half of the full square), median on a warm
// chip. One line a case: name, milliseconds, TFLOP/s; an argument names the cases by a part of
// their names. cuda_prefill_bench.py runs
// it beside PyTorch's SDPA and writes the ratios.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/cuda_values.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/prefill_attention.cuh"

namespace trireme::cuda {
namespace {

using Launch = void (*)(const PrefillAttention&, cudaStream_t);

struct Shape {
  int rows, position, tokens, head_dim, block_size;
};

// A chip that has been idle takes a tenth of a second to find its clock: warm for as long.
float median_ms(Launch launch, const PrefillAttention& args) {
  constexpr int kTimed = 15;
  constexpr float kWarmMs = 120.0f;
  constexpr float kTimedMs = 8.0f;  // between two events, at least
  std::vector<cudaEvent_t> events(kTimed + 1);
  for (cudaEvent_t& event : events) TRIREME_CUDA(cudaEventCreate(&event));
  float one = 0.0f;
  for (int i = 0; i < 2; ++i) {  // the first loads the kernel
    TRIREME_CUDA(cudaEventRecord(events[0]));
    launch(args, nullptr);
    TRIREME_CUDA(cudaEventRecord(events[1]));
    TRIREME_CUDA(cudaEventSynchronize(events[1]));
    TRIREME_CUDA(cudaEventElapsedTime(&one, events[0], events[1]));
  }
  const int calls = std::max(1, static_cast<int>(kTimedMs / one));
  for (float spent = 0.0f; spent < kWarmMs; spent += one) launch(args, nullptr);
  TRIREME_CUDA(cudaEventRecord(events[0]));
  for (int i = 0; i < kTimed; ++i) {
    for (int j = 0; j < calls; ++j) launch(args, nullptr);
    TRIREME_CUDA(cudaEventRecord(events[i + 1]));
  }
  TRIREME_CUDA(cudaDeviceSynchronize());
  std::vector<float> ms(kTimed);
  for (int i = 0; i < kTimed; ++i) {
    TRIREME_CUDA(cudaEventElapsedTime(&ms[i], events[i], events[i + 1]));
  }
  for (cudaEvent_t event : events) TRIREME_CUDA(cudaEventDestroy(event));
  std::nth_element(ms.begin(), ms.begin() + kTimed / 2, ms.end());
  return ms[kTimed / 2] / static_cast<float>(calls);
}

std::string case_name(const char* kernel, const Shape& shape) {
  char name[128];
  std::snprintf(name, sizeof(name), "prefill_%s_d%d_b%d_rows%d_pos%d_tokens%d", kernel,
                shape.head_dim, shape.block_size, shape.rows, shape.position, shape.tokens);
  return name;
}

void bench(const Shape& shape, const char* only) {
  const auto wanted = [&](const char* kernel) {
    return only == nullptr || case_name(kernel, shape).find(only) != std::string::npos;
  };
  if (!wanted("hopper") && !wanted("mma")) return;
  constexpr int kQHeads = 32;
  constexpr int kKvHeads = 8;
  const int length = shape.position + shape.tokens;
  const int entries = (length + shape.block_size - 1) / shape.block_size;
  std::vector<DeviceRow> rows;
  std::vector<int32_t> starts;
  std::vector<int32_t> table(static_cast<size_t>(entries) * shape.rows);
  std::iota(table.begin(), table.end(), 0);
  std::mt19937 random(7);
  std::shuffle(table.begin(), table.end(), random);
  for (int i = 0; i < shape.rows; ++i) {
    rows.push_back(
        {.token_begin = i * shape.tokens, .count = shape.tokens, .position = shape.position});
    starts.push_back(i * entries);
  }
  std::vector<PrefillTile> tiles;
  plan_prefill(rows, shape.head_dim, tiles);
  const size_t tokens = static_cast<size_t>(shape.rows) * shape.tokens;
  const size_t cache = table.size() * kKvHeads * shape.block_size * shape.head_dim;
  auto* q = random_values(tokens * kQHeads * shape.head_dim, 1);
  auto* k = random_values(cache, 2);
  auto* v = random_values(cache, 3);
  auto* out = allocate<uint16_t>(tokens * kQHeads * shape.head_dim);
  auto* device_rows = upload(rows);
  auto* device_table = upload(table);
  auto* device_starts = upload(starts);
  auto* device_tiles = upload(tiles);

  PrefillAttention args;
  args.q = q;
  args.q_stride = kQHeads * shape.head_dim;
  args.q_heads = kQHeads;
  args.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  args.rows = device_rows;
  args.tables = {.blocks = device_table, .table_begin = device_starts};
  args.kv = {.k = k,
             .v = v,
             .blocks = static_cast<int64_t>(table.size()),
             .kv_heads = kKvHeads,
             .head_dim = shape.head_dim,
             .block_size = shape.block_size};
  args.tiles = device_tiles;
  args.tile_count = static_cast<int32_t>(tiles.size());
  args.out = out;

  const double pairs = shape.rows * (static_cast<double>(shape.position) * shape.tokens +
                                     0.5 * shape.tokens * shape.tokens);
  const double flops = 4.0 * pairs * shape.head_dim * kQHeads;
  const auto report = [&](const char* kernel, Launch launch) {
    if (!wanted(kernel)) return;
    const float ms = median_ms(launch, args);
    std::printf("%s %.5f %.1f\n", case_name(kernel, shape).c_str(), ms, flops / ms * 1e-9);
    std::fflush(stdout);
  };
  if (prefill_hopper_supports(args)) report("hopper", launch_prefill_hopper);
  report("mma", launch_prefill_mma);
  for (void* data :
       {static_cast<void*>(q), static_cast<void*>(k), static_cast<void*>(v),
        static_cast<void*>(out), static_cast<void*>(device_rows), static_cast<void*>(device_table),
        static_cast<void*>(device_starts), static_cast<void*>(device_tiles)}) {
    TRIREME_CUDA(cudaFree(data));
  }
}

int run(const char* only) {
  for (const int dims : {128, 64, 256}) {
    for (const int tokens : {1024, 4096, 16384}) bench({1, 0, tokens, dims, 64}, only);
  }
  bench({1, 0, 4096, 96, 64}, only);
  bench({1, 0, 4096, 128, 16}, only);
  bench({1, 0, 16384, 128, 32}, only);
  bench({16, 0, 1024, 128, 64}, only);     // many prompts
  bench({1, 14336, 2048, 128, 64}, only);  // a chunk late in a long prompt
  return 0;
}

}  // namespace
}  // namespace trireme::cuda

int main(int argc, char** argv) {
  try {
    return trireme::cuda::run(argc > 1 ? argv[1] : nullptr);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
