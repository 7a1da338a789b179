// Decode attention: KV bytes over time against the read bandwidth measured in the same run, as JSON
// lines. Launches follow one another in a CUDA graph as layers do, each over another cache, so that
// none finds its KV in L2. `early`: the cached KV is requested before the previous kernel's end.
// The QKV preparation likewise, bytes read and written.
// cuda_decode_bench [COMMIT [PART OF A NAME]]
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/check.h"

namespace trireme::cuda {
namespace {

constexpr size_t kPoolElements = size_t{1} << 30;  // of K, and of V
constexpr size_t kCold = size_t{256} << 20;        // bytes that surely leave nothing in L2

struct Heads {
  const char* name;
  int q_heads, kv_heads;
};

struct Lengths {
  const char* name;
  std::vector<int> lengths;
};

__global__ void fill_random(uint16_t* data, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + 12345u;
    x ^= x >> 15, x *= 0x2c1b3c6du, x ^= x >> 12, x *= 0x297a2d39u, x ^= x >> 15;
    const float value = static_cast<float>(x) * 0x1p-31f - 1.0f;
    data[i] = static_cast<uint16_t>(__float_as_uint(value) >> 16);
  }
}

__global__ void __launch_bounds__(512) read_all(const uint4* data, size_t count, uint32_t* out) {
  uint32_t seen = 0;
  constexpr int kBatch = 8;
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i + (kBatch - 1) * step < count;
       i += kBatch * step) {
    uint4 x[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) x[j] = __ldcs(data + i + j * step);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) seen |= x[j].x ^ x[j].y ^ x[j].z ^ x[j].w;
  }
  if (seen == 0x12345678u) *out = seen;
}

template <class T>
T* allocate(size_t count) {
  T* data = nullptr;
  TRIREME_CUDA(cudaMalloc(&data, count * sizeof(T)));
  TRIREME_CUDA(cudaMemset(data, 0, count * sizeof(T)));
  return data;
}

template <class T>
T* upload(const std::vector<T>& host) {
  T* data = allocate<T>(std::max<size_t>(1, host.size()));
  TRIREME_CUDA(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

// Median seconds of one of `launches` calls, which are captured into a graph.
double seconds(cudaStream_t stream, int launches, const std::function<void(int)>& launch) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  TRIREME_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) launch(i);
  TRIREME_CUDA(cudaStreamEndCapture(stream, &graph));
  TRIREME_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  constexpr int kTimed = 11;
  std::vector<cudaEvent_t> events(kTimed + 1);
  for (cudaEvent_t& event : events) TRIREME_CUDA(cudaEventCreate(&event));
  TRIREME_CUDA(cudaGraphLaunch(exec, stream));
  TRIREME_CUDA(cudaEventRecord(events[0], stream));
  for (int i = 0; i < kTimed; ++i) {
    TRIREME_CUDA(cudaGraphLaunch(exec, stream));
    TRIREME_CUDA(cudaEventRecord(events[i + 1], stream));
  }
  TRIREME_CUDA(cudaStreamSynchronize(stream));
  std::vector<float> ms(kTimed);
  for (int i = 0; i < kTimed; ++i) {
    TRIREME_CUDA(cudaEventElapsedTime(&ms[i], events[i], events[i + 1]));
  }
  for (cudaEvent_t event : events) TRIREME_CUDA(cudaEventDestroy(event));
  TRIREME_CUDA(cudaGraphExecDestroy(exec));
  TRIREME_CUDA(cudaGraphDestroy(graph));
  std::nth_element(ms.begin(), ms.begin() + kTimed / 2, ms.end());
  return ms[kTimed / 2] * 1e-3 / launches;
}

class Bench {
 public:
  Bench(const char* commit, const char* only) : commit_(commit), only_(only) {
    TRIREME_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    cudaDeviceProp device;
    TRIREME_CUDA(cudaGetDeviceProperties(&device, 0));
    device_ = device.name;
    multiprocessors_ = device.multiProcessorCount;
    for (uint16_t** pool : {&k_, &v_}) {
      *pool = allocate<uint16_t>(kPoolElements);
      fill_random<<<2048, 256, 0, stream_>>>(*pool, kPoolElements);
      TRIREME_CUDA(cudaGetLastError());
    }
    read_ = 0;
    auto* out = allocate<uint32_t>(1);
    for (const int blocks : {2, 4}) {
      const double s = seconds(stream_, 4, [&](int i) {
        read_all<<<multiprocessors_ * blocks, 512, 0, stream_>>>(
            reinterpret_cast<const uint4*>(i % 2 == 0 ? k_ : v_), kPoolElements / 8, out);
      });
      read_ = std::max(read_, static_cast<double>(kPoolElements) * 2 / s);
    }
    std::printf("{\"name\": \"read\", \"value\": %.1f, \"unit\": \"GB/s\"}\n", read_ * 1e-9);
  }

  void attention(const Heads& heads, const Lengths& lengths, int head_dim, bool early) {
    constexpr int kBlock = 16;
    char name[120];
    std::snprintf(name, sizeof name, "decode_attention/%s/%d/%s%s", heads.name, head_dim,
                  lengths.name, early ? "/early" : "");
    if (std::strstr(name, only_) == nullptr) return;
    std::vector<DeviceRow> rows;
    std::vector<int32_t> begins, table;
    int64_t tokens = 0;
    for (const int n : lengths.lengths) {
      rows.push_back({static_cast<int32_t>(rows.size()), 1, n - 1, 0});
      begins.push_back(static_cast<int32_t>(table.size()));
      table.resize(table.size() + (n + kBlock - 1) / kBlock);
      tokens += n;
    }
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(7));
    const size_t cache = table.size() * kBlock * heads.kv_heads * head_dim;
    const int copies = static_cast<int>(std::min(
        kPoolElements / cache, std::max<size_t>(2, kCold / (cache * sizeof(uint16_t) * 2) + 1)));

    DecodeAttention a;
    const int count = static_cast<int>(rows.size());
    const int width = (heads.q_heads + 2 * heads.kv_heads) * head_dim;
    auto* qkv = allocate<uint16_t>(static_cast<size_t>(count) * width);
    fill_random<<<64, 256, 0, stream_>>>(qkv, static_cast<size_t>(count) * width);
    a.q = qkv;
    a.k = qkv + heads.q_heads * head_dim;
    a.v = qkv + (heads.q_heads + heads.kv_heads) * head_dim;
    a.q_stride = a.kv_stride = width;
    a.q_heads = heads.q_heads;
    a.prepare.inv_freq = upload(std::vector<float>(head_dim / 2, 0.01f));
    a.prepare.rotary_dim = head_dim;
    a.scale = 0.088f;
    a.rows = upload(rows);
    a.tables = {upload(table), upload(begins)};
    a.max_items = decode_max_items(count, heads.kv_heads, multiprocessors_);
    std::vector<DecodeItem> items;
    plan_decode(rows, 0, kBlock, heads.kv_heads, multiprocessors_, a.max_items, items);
    for (DecodeItem& item : items) item.table = begins[item.row];
    a.items = upload(items);
    a.item_count = upload(std::vector<int32_t>{static_cast<int32_t>(items.size())});
    a.early_context = early;
    a.workspace = allocate<uint8_t>(decode_workspace_bytes(a.max_items, heads.q_heads, head_dim));
    a.out = allocate<uint16_t>(static_cast<size_t>(count) * heads.q_heads * head_dim);
    const double s = seconds(stream_, std::max(copies, 8), [&](int i) {
      const size_t at = static_cast<size_t>(i % copies) * cache;
      a.kv = {k_ + at,        v_ + at,  static_cast<int64_t>(table.size()),
              heads.kv_heads, head_dim, kBlock};
      launch_decode_attention(a, stream_);
    });
    const double bytes = static_cast<double>(tokens) * heads.kv_heads * head_dim * 4;
    report(name, bytes, s);
    for (const void* p :
         {static_cast<const void*>(qkv), static_cast<const void*>(a.rows),
          static_cast<const void*>(a.tables.blocks), static_cast<const void*>(a.tables.table_begin),
          static_cast<const void*>(a.items), static_cast<const void*>(a.item_count),
          static_cast<const void*>(a.workspace), static_cast<const void*>(a.out),
          static_cast<const void*>(a.prepare.inv_freq)}) {
      TRIREME_CUDA(cudaFree(const_cast<void*>(p)));
    }
  }

  void prepare(const Heads& heads, int tokens, bool norm) {
    constexpr int kDim = 128, kBlock = 16;
    char name[120];
    std::snprintf(name, sizeof name, "prepare_qkv/%s/%d%s", heads.name, tokens,
                  norm ? "/norm" : "");
    if (std::strstr(name, only_) == nullptr) return;
    const int width = (heads.q_heads + 2 * heads.kv_heads) * kDim;
    std::vector<int32_t> table(tokens / kBlock + 1);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(7));
    PrepareQkv p;
    p.q_stride = p.kv_stride = width;
    if (norm) p.prepare.q_norm = p.prepare.k_norm = upload(std::vector<float>(kDim, 1.0f));
    p.prepare.inv_freq = upload(std::vector<float>(kDim / 2, 0.01f));
    p.prepare.rotary_dim = kDim;
    p.q_heads = heads.q_heads;
    p.rows = upload(std::vector<DeviceRow>{{0, tokens, 0, 0}});
    p.token_rows = upload(std::vector<int32_t>(tokens, 0));
    p.tokens = tokens;
    p.tables = {upload(table), upload(std::vector<int32_t>{0})};
    auto* k = allocate<uint16_t>(table.size() * kBlock * heads.kv_heads * kDim);
    auto* v = allocate<uint16_t>(table.size() * kBlock * heads.kv_heads * kDim);
    p.kv = {k, v, static_cast<int64_t>(table.size()), heads.kv_heads, kDim, kBlock};
    const size_t batch = static_cast<size_t>(tokens) * width;
    const int copies = static_cast<int>(kPoolElements / batch);
    const double s = seconds(stream_, 8, [&](int i) {
      uint16_t* qkv = v_ + (i % copies) * batch;
      p.q = qkv;
      p.k = qkv + heads.q_heads * kDim;
      p.v = qkv + (heads.q_heads + heads.kv_heads) * kDim;
      launch_prepare_qkv(p, stream_);
    });
    report(name, static_cast<double>(batch) * 4, s);
    fill_random<<<2048, 256, 0, stream_>>>(v_, kPoolElements);
  }

 private:
  void report(const char* name, double bytes, double s) const {
    std::printf(
        "{\"name\": \"%s\", \"value\": %.1f, \"unit\": \"GB/s\", \"baseline\": %.1f, \"ratio\": "
        "%.3f, \"us\": %.2f, \"mb\": %.2f, \"device\": \"%s\", \"commit\": \"%s\", \"command\": "
        "\"cuda_decode_bench\"}\n",
        name, bytes / s * 1e-9, read_ * 1e-9, bytes / s / read_, s * 1e6, bytes * 1e-6,
        device_.c_str(), commit_);
    std::fflush(stdout);
  }

  const char* commit_;
  const char* only_;
  cudaStream_t stream_ = nullptr;
  std::string device_;
  int multiprocessors_ = 0;
  uint16_t* k_ = nullptr;
  uint16_t* v_ = nullptr;
  double read_ = 0;
};

void run(const char* commit, const char* only) {
  Bench bench(commit, only);
  std::vector<int> skewed = {65536};
  std::mt19937 engine(11);
  for (int i = 0; i < 63; ++i) skewed.push_back(64 + static_cast<int>(engine() % 900));
  const Lengths lengths[] = {{"1x1k", {1024}},
                             {"1x8k", {8192}},
                             {"1x32k", {32768}},
                             {"1x128k", {131072}},
                             {"64x1k", std::vector<int>(64, 1024)},
                             {"256x1k", std::vector<int>(256, 1024)},
                             {"256x100", std::vector<int>(256, 100)},
                             {"skewed", skewed}};
  for (const Heads& heads :
       {Heads{"32:8", 32, 8}, {"64:8", 64, 8}, {"16:8", 16, 8}, {"8:2", 8, 2}}) {
    for (const Lengths& l : lengths) {
      for (const bool early : {false, true}) bench.attention(heads, l, 128, early);
    }
  }
  for (const int dim : {64, 80, 96, 256}) bench.attention({"32:8", 32, 8}, lengths[4], dim, true);
  bench.attention({"8:8", 8, 8}, lengths[4], 128, true);
  bench.attention({"64:4", 64, 4}, lengths[4], 128, true);
  for (const bool norm : {false, true}) bench.prepare({"32:8", 32, 8}, 8192, norm);
  bench.prepare({"32:8", 32, 8}, 512, false);
}

}  // namespace
}  // namespace trireme::cuda

int main(int argc, char** argv) {
  try {
    trireme::cuda::run(argc > 1 ? argv[1] : "", argc > 2 ? argv[2] : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
