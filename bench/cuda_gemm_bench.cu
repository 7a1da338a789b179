// The skinny product against cuBLASLt's best algorithm, cold L2, and a chain of an 8B model's
// products against the read bandwidth measured in the run. One JSON object a line.
//   cuda_gemm_bench [compare] [chain] [more] [shapes]     default: compare chain
// `more`: what a kernel of ours for more rows than 16 could win at most over cuBLASLt.
// Every time is of a CUDA graph of calls that rotate over more weights than the L2 cache holds;
// ours overlap as they do in serving (programmatic dependent launch), and once more without.
#include <cublasLt.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/skinny_gemm.h"

namespace trireme::cuda {
namespace {

constexpr size_t kGiB = size_t{1} << 30;

__global__ void fill_random(uint32_t* to, size_t count, uint32_t seed) {  // bf16 pairs in +-0.06
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    x = (x ^ (x >> 15)) * 2246822519u;
    x = (x ^ (x >> 13)) * 3266489917u;
    to[i] = (x & 0x807f807fu) | 0x3d003d00u | ((x >> 8) & 0x00000080u);
  }
}

template <int kUnroll>
__global__ void read_all(const uint4* from, size_t count, uint32_t* sink) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  uint32_t all = 0;
  for (; i + (kUnroll - 1) * step < count; i += kUnroll * step) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = __ldcs(from + i + u * step);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) all ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (all == 0x12345678u) *sink = all;
}

struct Memory {
  void* data = nullptr;
  size_t bytes;
  explicit Memory(size_t size) : bytes(size) {
    TRIREME_CUDA(cudaMalloc(&data, size));
    fill_random<<<2048, 256>>>(static_cast<uint32_t*>(data), size / 4, 12345u + size);
    TRIREME_CUDA(cudaGetLastError());
    TRIREME_CUDA(cudaDeviceSynchronize());
  }
  ~Memory() { cudaFree(data); }
  Memory(const Memory&) = delete;
  char* at(size_t offset) const { return static_cast<char*>(data) + offset; }
};

struct Device {
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  std::string name;
  Device() {
    cudaDeviceProp properties;
    TRIREME_CUDA(cudaGetDeviceProperties(&properties, 0));
    name = properties.name;
    TRIREME_CUDA(cudaStreamCreate(&stream));
    TRIREME_CUDA(cudaEventCreate(&begin));
    TRIREME_CUDA(cudaEventCreate(&end));
  }
  void print(const std::string& what, double value, const char* unit, double baseline,
             double ratio) const {
    std::printf(
        "{\"name\": \"%s\", \"value\": %.4g, \"unit\": \"%s\", \"baseline\": %.4g, "
        "\"ratio\": %.4f, \"device\": \"%s\"}\n",
        what.c_str(), value, unit, baseline, ratio, name.c_str());
    std::fflush(stdout);
  }
};

// A captured graph of work; milliseconds of one replay.
class Graph {
 public:
  Graph(Device& device, const std::function<bool()>& work) : device_(device) {
    TRIREME_CUDA(cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeThreadLocal));
    bool good = work();
    cudaGraph_t graph = nullptr;
    TRIREME_CUDA(cudaStreamEndCapture(device.stream, &graph));
    if (good) TRIREME_CUDA(cudaGraphInstantiate(&executable_, graph, 0));
    if (graph != nullptr) TRIREME_CUDA(cudaGraphDestroy(graph));
  }
  ~Graph() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  }
  Graph(const Graph&) = delete;
  bool good() const { return executable_ != nullptr; }
  double milliseconds() {
    TRIREME_CUDA(cudaEventRecord(device_.begin, device_.stream));
    TRIREME_CUDA(cudaGraphLaunch(executable_, device_.stream));
    TRIREME_CUDA(cudaEventRecord(device_.end, device_.stream));
    TRIREME_CUDA(cudaEventSynchronize(device_.end));
    float ms = 0.0f;
    TRIREME_CUDA(cudaEventElapsedTime(&ms, device_.begin, device_.end));
    return ms;
  }

 private:
  Device& device_;
  cudaGraphExec_t executable_ = nullptr;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Medians of `rounds` replays of each graph, taken in turn.
std::vector<double> time_in_turn(const std::vector<Graph*>& graphs, int rounds) {
  std::vector<std::vector<double>> times(graphs.size());
  for (Graph* graph : graphs) graph->milliseconds();
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < graphs.size(); ++i) times[i].push_back(graphs[i]->milliseconds());
  }
  std::vector<double> medians;
  for (auto& each : times) medians.push_back(median(each));
  return medians;
}

double measure_read_gb_s(Device& device) {
  Memory memory(8 * kGiB);
  Memory sink(256);
  double best = 0.0;
  const auto run = [&](auto kernel, int blocks, int threads) {
    Graph graph(device, [&] {
      kernel<<<blocks, threads, 0, device.stream>>>(static_cast<const uint4*>(memory.data),
                                                    memory.bytes / 16,
                                                    static_cast<uint32_t*>(sink.data));
      return true;
    });
    const double ms = time_in_turn({&graph}, 5)[0];
    best = std::max(best, memory.bytes / ms * 1e-6);
  };
  for (int per_sm : {2, 4, 8}) {
    run(read_all<4>, 132 * per_sm, 256);
    run(read_all<8>, 132 * per_sm, 256);
    run(read_all<8>, 132 * per_sm, 512);
  }
  return best;
}

struct Dims {
  const char* name;
  int64_t rows;
  int64_t cols;
};
constexpr Dims kDims[] = {
    {"8B qkv", 6144, 4096},   {"8B o", 4096, 4096},           {"8B gate+up", 28672, 4096},
    {"8B down", 4096, 14336}, {"8B head", 128256, 4096},      {"70B/4 qkv", 2560, 8192},
    {"70B/4 o", 8192, 2048},  {"70B/4 gate+up", 14336, 8192}, {"70B/4 down", 8192, 7168},
};
constexpr Dims kSmallDims[] = {
    {"qkv", 960, 576},           {"o", 576, 576},         {"gate+up", 3072, 576},
    {"down", 576, 1536},         {"1B qkv", 3072, 2048},  {"1B o", 2048, 2048},
    {"1B gate+up", 16384, 2048}, {"1B down", 2048, 8192}, {"head", 49152, 576},
};

// One product over rotating weights.
struct Rotation {
  const Memory& pool;
  Gemm gemm;
  size_t bytes;
  int calls;

  Rotation(const Memory& weights, const Memory& x, const Memory& y, const Dims& dims, int tokens)
      : pool(weights), bytes(2 * dims.rows * dims.cols) {
    gemm.x = x.data;
    gemm.x_stride = dims.cols;
    gemm.rows = dims.rows;
    gemm.cols = dims.cols;
    gemm.y = y.data;
    gemm.y_stride = dims.rows;
    gemm.tokens = tokens;
    calls = static_cast<int>(std::clamp<size_t>(kGiB / bytes, 4, 64));
  }
  const void* weight(int call) const {
    const size_t copies = pool.bytes / bytes;
    return pool.at(call % copies * bytes);
  }
  double gb_s(double ms) const { return static_cast<double>(bytes) * calls / ms * 1e-6; }
  bool launch(const SkinnyShape& shape, bool overlap, cudaStream_t stream) const {
    for (int i = 0; i < calls; ++i) {
      Gemm one = gemm;
      one.weight = weight(i);
      if (!launch_skinny_gemm_as(shape, one, overlap, stream)) return false;
    }
    return true;
  }
};

class Baseline {
 public:
  Baseline() : workspace_(64 << 20) { check(cublasLtCreate(&handle_)); }

  // The fastest of the library's candidates, as a graph of the rotation.
  std::unique_ptr<Graph> best(const Rotation& rotation, Device& device) {
    const Gemm& gemm = rotation.gemm;
    check(cublasLtMatmulDescInit(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(cublasLtMatmulDescSetAttribute(&operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                         sizeof(transposed)));
    check(cublasLtMatrixLayoutInit(&w_, CUDA_R_16BF, gemm.cols, gemm.rows, gemm.cols));
    check(cublasLtMatrixLayoutInit(&x_, CUDA_R_16BF, gemm.cols, gemm.tokens, gemm.x_stride));
    check(cublasLtMatrixLayoutInit(&y_, CUDA_R_16BF, gemm.rows, gemm.tokens, gemm.y_stride));
    cublasLtMatmulPreferenceOpaque_t preference;
    check(cublasLtMatmulPreferenceInit(&preference));
    const uint64_t bytes = workspace_.bytes;
    check(cublasLtMatmulPreferenceSetAttribute(
        &preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes)));
    cublasLtMatmulHeuristicResult_t results[100];
    int count = 0;
    check(cublasLtMatmulAlgoGetHeuristic(handle_, &operation_, &w_, &x_, &y_, &y_, &preference, 100,
                                         results, &count));
    std::vector<double> times(count, 1e9);
    candidates = 0;
    for (int i = 0; i < count; ++i) {
      Graph graph(device, [&] { return launch(rotation, results[i].algo, device.stream); });
      if (!graph.good()) continue;
      graph.milliseconds();
      times[i] = std::min(graph.milliseconds(), graph.milliseconds());
      ++candidates;
    }
    // The three fastest once more, in turn.
    std::vector<int> order(count);
    for (int i = 0; i < count; ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](int a, int b) { return times[a] < times[b]; });
    std::unique_ptr<Graph> finalists[3];
    std::vector<Graph*> in_turn;
    for (int i = 0; i < std::min(3, candidates); ++i) {
      finalists[i] = std::make_unique<Graph>(
          device, [&] { return launch(rotation, results[order[i]].algo, device.stream); });
      in_turn.push_back(finalists[i].get());
    }
    const std::vector<double> again = time_in_turn(in_turn, 5);
    return std::move(finalists[std::min_element(again.begin(), again.end()) - again.begin()]);
  }

  int candidates = 0;

 private:
  static void check(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS) fail_internal(cublasLtGetStatusString(status));
  }
  bool launch(const Rotation& rotation, const cublasLtMatmulAlgo_t& algorithm,
              cudaStream_t stream) {
    const float alpha = 1.0f, beta = 0.0f;
    for (int i = 0; i < rotation.calls; ++i) {
      if (cublasLtMatmul(handle_, &operation_, &alpha, rotation.weight(i), &w_, rotation.gemm.x,
                         &x_, &beta, rotation.gemm.y, &y_, rotation.gemm.y, &y_, &algorithm,
                         workspace_.data, workspace_.bytes, stream) != CUBLAS_STATUS_SUCCESS) {
        return false;
      }
    }
    return true;
  }
  cublasLtHandle_t handle_ = nullptr;
  Memory workspace_;
  cublasLtMatmulDescOpaque_t operation_;
  cublasLtMatrixLayoutOpaque_t w_, x_, y_;
};

void compare(Device& device, double read_gb_s) {
  const Memory pool(2200u << 20), x(16 * 16384 * 4), y(16 * 131072 * 4);
  Baseline baseline;
  double log_sum = 0.0, plain_log_sum = 0.0, least = 1e9, plain_least = 1e9;
  int count = 0;
  for (const Dims& dims : kDims) {
    for (int tokens : {1, 2, 3, 4, 5, 8, 12, 16}) {
      const Rotation rotation(pool, x, y, dims, tokens);
      const SkinnyShape shape = choose_skinny_shape(rotation.gemm);
      Graph ours(device, [&] { return rotation.launch(shape, true, device.stream); });
      Graph plain(device, [&] { return rotation.launch(shape, false, device.stream); });
      const std::unique_ptr<Graph> theirs = baseline.best(rotation, device);
      const std::vector<double> ms = time_in_turn({&ours, theirs.get(), &plain}, 7);
      const double ratio = ms[1] / ms[0], plain_ratio = ms[1] / ms[2];
      const std::string name = "skinny_gemm " + std::string(dims.name) + " " +
                               std::to_string(dims.rows) + "x" + std::to_string(dims.cols) +
                               " tokens " + std::to_string(tokens);
      device.print(name + " vs best of " + std::to_string(baseline.candidates) + " cuBLASLt",
                   rotation.gb_s(ms[0]), "GB/s", rotation.gb_s(ms[1]), ratio);
      log_sum += std::log(ratio);
      plain_log_sum += std::log(plain_ratio);
      least = std::min(least, ratio);
      plain_least = std::min(plain_least, plain_ratio);
      ++count;
    }
  }
  device.print("skinny_gemm geometric mean vs cuBLASLt", std::exp(log_sum / count), "x", 1.0,
               std::exp(log_sum / count));
  device.print("skinny_gemm minimum vs cuBLASLt", least, "x", 1.0, least);
  device.print("skinny_gemm without overlap, geometric mean vs cuBLASLt",
               std::exp(plain_log_sum / count), "x", 1.0, std::exp(plain_log_sum / count));
  device.print("skinny_gemm without overlap, minimum vs cuBLASLt", plain_least, "x", 1.0,
               plain_least);
  device.print("read bandwidth", read_gb_s, "GB/s", read_gb_s, 1.0);
}

// Weights are read once at best: the library's share of the read bandwidth is the most that it
// leaves.
void compare_more(Device& device, double read_gb_s) {
  const Memory pool(2200u << 20), x(64 * 16384 * 4), y(64 * 131072 * 4);
  Baseline baseline;
  for (int tokens : {16, 17, 20, 24, 32, 48, 64}) {
    double log_sum = 0.0, most = 0.0;
    for (const Dims& dims : kDims) {
      const Rotation rotation(pool, x, y, dims, tokens);
      const std::unique_ptr<Graph> theirs = baseline.best(rotation, device);
      const double share = rotation.gb_s(time_in_turn({theirs.get()}, 7)[0]) / read_gb_s;
      log_sum += std::log(share);
      most = std::max(most, 1 / share);
      if (tokens != 16) continue;
      Graph ours(device, [&] {
        return rotation.launch(choose_skinny_shape(rotation.gemm), true, device.stream);
      });
      const double mine = rotation.gb_s(time_in_turn({&ours}, 7)[0]) / read_gb_s;
      device.print("skinny_gemm " + std::string(dims.name) + " tokens 16, share of read", mine, "x",
                   share, mine / share);
    }
    const double share = std::exp(log_sum / std::size(kDims));
    device.print("cuBLASLt tokens " + std::to_string(tokens) + ", geometric mean share of read",
                 share, "x", 1.0, share);
    device.print("cuBLASLt tokens " + std::to_string(tokens) + ", most to win at one shape", most,
                 "x", 1.0, most);
  }
}

constexpr SkinnyShape kShapes[] = {
    {4, 4},          {4, 3},          {2, 6},          {0, 0, 1},       {0, 0, 2}, {0, 8, 1, true},
    {0, 0, 1, true}, {0, 0, 2, true}, {0, 4, 2, true}, {0, 3, 2, true}, {0, 6, 2},
};
std::string name_of(const SkinnyShape& s) {
  char name[32];
  std::snprintf(name, sizeof(name), s.groups == 0 ? "%d,%dx%d%s" : "%d,%d", s.groups, s.depth,
                s.per_sm, s.wide ? "w" : "");
  return name;
}

// Every built shape, in GB/s: for choosing.
void list_shapes(Device& device) {
  const Memory pool(2200u << 20), x(16 * 16384 * 4), norm(16384 * 4), y(16 * 131072 * 4);
  std::printf("%-30s", "GB/s");
  for (const SkinnyShape& s : kShapes) std::printf(" %7s", name_of(s).c_str());
  std::printf("\n");
  const auto row = [&](const Dims& dims, int tokens, bool with_norm, bool overlap) {
    Rotation rotation(pool, x, y, dims, tokens);
    if (with_norm) rotation.gemm.norm = static_cast<const float*>(norm.data);
    std::printf("%6dx%-5d %2d %s %s     ", static_cast<int>(dims.rows), static_cast<int>(dims.cols),
                tokens, with_norm ? "norm" : "    ", overlap ? "     " : "plain");
    for (const SkinnyShape& shape : kShapes) {
      Graph graph(device, [&] { return rotation.launch(shape, overlap, device.stream); });
      std::printf(" %7.0f", graph.good() ? rotation.gb_s(time_in_turn({&graph}, 3)[0]) : 0.0);
    }
    std::printf("\n");
  };
  for (const Dims& dims : kDims) {
    for (int tokens : {1, 2, 4, 8, 12, 16}) row(dims, tokens, false, true);
    row(dims, 1, true, true);
    row(dims, 8, true, true);
    row(dims, 16, true, true);
    row(dims, 1, false, false);
  }
  for (const Dims& dims : kSmallDims) {
    row(dims, 1, false, true);
    row(dims, 16, true, true);
  }
}

// The products of 32 layers of an 8B model, each reading what the last one wrote.
void chain(Device& device, double read_gb_s, bool all_shapes) {
  constexpr int64_t kHidden = 4096, kQkv = 6144, kInner = 14336, kLayers = 32;
  constexpr size_t kLayerBytes = 2 * kHidden * (kQkv + kHidden + 2 * kInner + kInner);
  const Memory weights(kLayers * kLayerBytes);
  const Memory residual(16 * kHidden * 4), qkv(16 * kQkv * 2), inner(16 * kInner * 2);
  const Memory norm(kHidden * 4), normed(16 * kHidden * 2);
  // `apart`: norms are kernels of their own, as for more than kMaxNormedTokens.
  const auto time = [&](int tokens, bool overlap, const SkinnyShape* shape, bool apart = false) {
    Graph graph(device, [&] {
      size_t offset = 0;
      const auto product = [&](const Memory& x, int64_t x_stride, bool with_norm, int64_t rows,
                               int64_t cols, GemmOut kind, const Memory& y, int64_t y_stride) {
        Gemm gemm;
        gemm.x = x.data, gemm.x_stride = x_stride;
        gemm.weight = weights.at(offset), gemm.rows = rows, gemm.cols = cols;
        gemm.kind = kind, gemm.y = y.data, gemm.y_stride = y_stride, gemm.tokens = tokens;
        if (with_norm && apart) {
          launch_rms_norm(static_cast<float*>(x.data), nullptr, 0,
                          static_cast<const float*>(norm.data), 1e-5f, tokens, cols, normed.data,
                          device.stream);
          gemm.x = normed.data;
        } else if (with_norm) {
          gemm.norm = static_cast<const float*>(norm.data), gemm.norm_eps = 1e-5f;
        }
        offset += 2 * rows * cols;
        if (shape == nullptr || !launch_skinny_gemm_as(*shape, gemm, overlap, device.stream)) {
          launch_skinny_gemm_as(choose_skinny_shape(gemm), gemm, overlap, device.stream);
        }
      };
      for (int layer = 0; layer < kLayers; ++layer) {
        product(residual, kHidden, true, kQkv, kHidden, GemmOut::kElement, qkv, kQkv);
        product(qkv, kQkv, false, kHidden, kHidden, GemmOut::kAddF32, residual, kHidden);
        product(residual, kHidden, true, 2 * kInner, kHidden, GemmOut::kSwiGlu, inner, kInner);
        product(inner, kInner, false, kHidden, kInner, GemmOut::kAddF32, residual, kHidden);
      }
      return true;
    });
    return weights.bytes / time_in_turn({&graph}, 7)[0] * 1e-6;
  };
  for (int tokens : {1, 2, 4, 8, 12, 16}) {
    const double apart = time(tokens, true, nullptr, true);
    device.print(
        "skinny_gemm chain of 32 8B layers, tokens " + std::to_string(tokens) + ", norms apart",
        apart, "GB/s", read_gb_s, apart / read_gb_s);
    for (bool overlap : {true, false}) {
      const double gb_s = time(tokens, overlap, nullptr);
      device.print("skinny_gemm chain of 32 8B layers, tokens " + std::to_string(tokens) +
                       (overlap ? "" : ", without overlap"),
                   gb_s, "GB/s", read_gb_s, gb_s / read_gb_s);
    }
    for (const SkinnyShape& s : kShapes) {
      if (!all_shapes) continue;
      std::printf("chain tokens %d, %s: %.4f\n", tokens, name_of(s).c_str(),
                  time(tokens, true, &s) / read_gb_s);
    }
  }
}

}  // namespace
}  // namespace trireme::cuda

int main(int argc, char** argv) {
  using namespace trireme::cuda;
  const auto asked = [&](const char* what, bool by_default) {
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], what) == 0) return true;
    }
    return argc == 1 && by_default;
  };
  try {
    Device device;
    const double read_gb_s = measure_read_gb_s(device);
    device.print("read bandwidth", read_gb_s, "GB/s", read_gb_s, 1.0);
    if (asked("shapes", false)) list_shapes(device);
    if (asked("chain", true)) chain(device, read_gb_s, asked("shapes", false));
    if (asked("compare", true)) compare(device, read_gb_s);
    if (asked("more", false)) compare_more(device, read_gb_s);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
