// Prefill attention against a float64 reference over the same inputs. Inputs are fresh random
// numbers; every cache slot that no query may see, every block that no row owns and the output
// are NaN before the launch; table entries behind the window point nowhere.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/prefill_attention.cuh"

namespace trireme::cuda {
namespace {

// P is rounded to the element before it meets V, and so is the output: half a step of bf16 is up to
// 2^-8 of the value, of f16 an eighth of that.
constexpr double kFiner = kElementIsF16 ? 8 : 1;
constexpr double kCaseTolerance = 5e-3 / kFiner;     // relative L2 error over a case
constexpr double kQueryTolerance = 1.5e-2 / kFiner;  // of one query's head
constexpr uint16_t kNan = 0x7fff;

using Launcher = void (*)(const PrefillAttention&, cudaStream_t);

struct Span {
  int position = 0;
  int count = 0;
};

struct Case {
  std::string name;
  int head_dim = 128;
  int q_heads = 4;
  int kv_heads = 2;
  int block_size = 64;
  std::vector<Span> rows;
  int window = 0;
  float softcap = 0.0f;
  float spread = 1.0f;  // of the logits
};

template <class T>
class DeviceVector {
 public:
  explicit DeviceVector(const std::vector<T>& host) : size_(host.size()) {
    TRIREME_CUDA(cudaMalloc(&data_, std::max<size_t>(size_, 1) * sizeof(T)));
    upload(host);
  }
  ~DeviceVector() { cudaFree(data_); }
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;

  T* get() const { return data_; }
  void upload(const std::vector<T>& host) {
    TRIREME_CUDA(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> download() const {
    std::vector<T> host(size_);
    TRIREME_CUDA(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

__device__ double block_reduce(double x, bool maximum) {
  __shared__ double parts[32];
  for (int i = 16; i > 0; i /= 2) {
    const double other = __shfl_xor_sync(0xffffffffu, x, i);
    x = maximum ? fmax(x, other) : x + other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  for (int i = 0; i < blockDim.x / 32; ++i) {
    if (i == 0)
      x = parts[0];
    else
      x = maximum ? fmax(x, parts[i]) : x + parts[i];
  }
  return x;
}

// One block a (token of `row`, head). out: double [tokens, q_heads * head_dim].
__global__ void reference_kernel(PrefillAttention args, int row_index, double* out) {
  extern __shared__ double weights[];
  const DeviceRow row = args.rows[row_index];
  const int head = blockIdx.x;
  const int dims = args.kv.head_dim;
  const int at = row.position + blockIdx.y;
  const int begin = args.window > 0 ? max(0, at - args.window + 1) : 0;
  const int64_t token = row.token_begin + blockIdx.y;
  const auto* q = static_cast<const Element*>(args.q) + token * args.q_stride + head * dims;
  const int32_t* table = args.tables.blocks + args.tables.table_begin[row_index];
  const int kv_head = head / (args.q_heads / args.kv.kv_heads);
  const auto slot = [&](int p) {
    return ((int64_t{table[p / args.kv.block_size]} * args.kv.kv_heads + kv_head) *
                args.kv.block_size +
            p % args.kv.block_size) *
           dims;
  };
  double largest = -INFINITY;
  for (int p = begin + threadIdx.x; p <= at; p += blockDim.x) {
    const auto* k = static_cast<const Element*>(args.kv.k) + slot(p);
    double dot = 0.0;
    for (int d = 0; d < dims; ++d) {
      dot += static_cast<double>(widen(q[d])) * widen(k[d]);
    }
    dot *= args.scale;
    if (args.softcap > 0.0f) dot = args.softcap * tanh(dot / args.softcap);
    weights[p - begin] = dot;
    largest = fmax(largest, dot);
  }
  largest = block_reduce(largest, true);
  double total = 0.0;
  for (int p = begin + threadIdx.x; p <= at; p += blockDim.x) {
    total += weights[p - begin] = exp(weights[p - begin] - largest);
  }
  total = block_reduce(total, false);
  for (int d = threadIdx.x; d < dims; d += blockDim.x) {
    double sum = 0.0;
    for (int p = begin; p <= at; ++p) {
      sum += weights[p - begin] * widen((static_cast<const Element*>(args.kv.v) + slot(p))[d]);
    }
    out[(token * args.q_heads + head) * dims + d] = sum / total;
  }
}

class Problem {
 public:
  Problem(const Case& c, std::mt19937& random) : c_(c) {
    lay_out_rows(random);
    fill(random);
  }

  PrefillAttention args() const {
    PrefillAttention a;
    a.q = q_->get();
    a.q_stride = q_stride_;
    a.q_heads = c_.q_heads;
    a.scale = c_.spread / std::sqrt(static_cast<float>(c_.head_dim));
    a.softcap = c_.softcap;
    a.window = c_.window;
    a.rows = device_rows_->get();
    a.tables = {.blocks = tables_->get(), .table_begin = table_begin_->get()};
    a.kv = {.k = k_->get(),
            .v = v_->get(),
            .blocks = blocks_,
            .kv_heads = c_.kv_heads,
            .head_dim = c_.head_dim,
            .block_size = c_.block_size};
    a.tiles = tiles_->get();
    a.tile_count = static_cast<int32_t>(tile_count_);
    a.out = out_->get();
    return a;
  }

  std::vector<double> reference() const {
    DeviceVector<double> out(std::vector<double>(tokens_ * c_.q_heads * c_.head_dim, 0.0));
    size_t longest = 0;
    for (const DeviceRow& row : rows_) {
      longest = std::max<size_t>(longest, row.position + row.count);
    }
    const int bytes = static_cast<int>(longest * sizeof(double));
    TRIREME_CUDA(
        cudaFuncSetAttribute(reference_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (rows_[i].count == 0) continue;
      const dim3 grid(c_.q_heads, rows_[i].count);
      reference_kernel<<<grid, 128, bytes>>>(args(), static_cast<int>(i), out.get());
      TRIREME_CUDA(cudaGetLastError());
    }
    TRIREME_CUDA(cudaDeviceSynchronize());
    return out.download();
  }

  // Runs a launcher; how many values are wrong in kind, and the errors of the others.
  bool check(const char* kernel, Launcher launch, const std::vector<double>& expected) {
    out_->upload(std::vector<uint16_t>(out_size(), kNan));
    launch(args(), nullptr);
    TRIREME_CUDA(cudaDeviceSynchronize());
    const std::vector<uint16_t> got = out_->download();
    std::vector<char> owned(tokens_ + kGuardTokens, 0);
    for (const DeviceRow& row : rows_) {
      std::fill_n(owned.begin() + row.token_begin, row.count, 1);
    }
    double error = 0.0, norm = 0.0, worst = 0.0;
    int64_t wrong = 0;
    for (size_t token = 0; token < owned.size(); ++token) {
      for (int head = 0; head < c_.q_heads; ++head) {
        double query_error = 0.0, query_norm = 0.0;
        for (int d = 0; d < c_.head_dim; ++d) {
          const size_t i = (token * c_.q_heads + head) * c_.head_dim + d;
          const double value = element_value(got[i]);
          if (!owned[token]) {
            wrong += got[i] != kNan;
            continue;
          }
          wrong += !std::isfinite(value);
          query_error += (value - expected[i]) * (value - expected[i]);
          query_norm += expected[i] * expected[i];
        }
        error += query_error;
        norm += query_norm;
        if (query_norm > 0.0) worst = std::max(worst, std::sqrt(query_error / query_norm));
      }
    }
    const double relative = norm > 0.0 ? std::sqrt(error / norm) : 0.0;
    const bool good = wrong == 0 && relative <= kCaseTolerance && worst <= kQueryTolerance;
    std::printf("%s %-7s %-34s error %.2e worst query %.2e wrong %lld\n", good ? "ok  " : "FAIL",
                kernel, c_.name.c_str(), relative, worst, static_cast<long long>(wrong));
    return good;
  }

 private:
  static constexpr int kGuardTokens = 130;

  size_t out_size() const { return (tokens_ + kGuardTokens) * c_.q_heads * c_.head_dim; }

  void lay_out_rows(std::mt19937& random) {
    for (const Span& span : c_.rows) {
      tokens_ += 2;  // tokens of nobody, which must stay as they are
      rows_.push_back({.token_begin = static_cast<int32_t>(tokens_),
                       .count = span.count,
                       .position = span.position});
      tokens_ += span.count;
    }
    for (const DeviceRow& row : rows_) {
      blocks_ += (row.position + row.count + c_.block_size - 1) / c_.block_size;
    }
    const int64_t owned = blocks_;
    blocks_ = owned + 3;
    std::vector<int32_t> order(blocks_);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    size_t next = 0;
    for (const DeviceRow& row : rows_) {
      table_starts_.push_back(static_cast<int32_t>(table_.size()));
      const int behind =
          c_.window > 0 ? std::max(0, row.position - c_.window + 1) / c_.block_size : 0;
      const int entries = (row.position + row.count + c_.block_size - 1) / c_.block_size;
      for (int i = 0; i < entries; ++i) {
        table_.push_back(i < behind ? 0x3fffffff : order[next]);
        ++next;
      }
      table_.push_back(0x3fffffff);  // past the end
    }
  }

  void fill(std::mt19937& random) {
    std::normal_distribution<float> normal;
    q_stride_ = c_.q_heads * c_.head_dim + 24;
    std::vector<uint16_t> q((tokens_ + 1) * q_stride_, kNan);
    for (const DeviceRow& row : rows_) {
      for (int i = 0; i < row.count; ++i) {
        for (int d = 0; d < c_.q_heads * c_.head_dim; ++d) {
          q[(row.token_begin + i) * q_stride_ + d] = element_bits(normal(random));
        }
      }
    }
    const int64_t slot = c_.head_dim;
    std::vector<uint16_t> k(blocks_ * c_.kv_heads * c_.block_size * slot, kNan);
    std::vector<uint16_t> v = k;
    for (size_t r = 0; r < rows_.size(); ++r) {
      for (int p = 0; p < rows_[r].position + rows_[r].count; ++p) {
        const int32_t block = table_[table_starts_[r] + p / c_.block_size];
        if (block == 0x3fffffff) continue;
        for (int head = 0; head < c_.kv_heads; ++head) {
          const int64_t at =
              ((int64_t{block} * c_.kv_heads + head) * c_.block_size + p % c_.block_size) * slot;
          for (int d = 0; d < c_.head_dim; ++d) {
            k[at + d] = element_bits(normal(random));
            v[at + d] = element_bits(normal(random));
          }
        }
      }
    }
    std::vector<PrefillTile> tiles;
    plan_prefill(rows_, c_.head_dim, tiles);
    tile_count_ = tiles.size();
    q_ = std::make_unique<DeviceVector<uint16_t>>(q);
    k_ = std::make_unique<DeviceVector<uint16_t>>(k);
    v_ = std::make_unique<DeviceVector<uint16_t>>(v);
    out_ = std::make_unique<DeviceVector<uint16_t>>(std::vector<uint16_t>(out_size(), kNan));
    device_rows_ = std::make_unique<DeviceVector<DeviceRow>>(rows_);
    tables_ = std::make_unique<DeviceVector<int32_t>>(table_);
    table_begin_ = std::make_unique<DeviceVector<int32_t>>(table_starts_);
    tiles_ = std::make_unique<DeviceVector<PrefillTile>>(tiles);
  }

  const Case& c_;
  std::vector<DeviceRow> rows_;
  std::vector<int32_t> table_;
  std::vector<int32_t> table_starts_;
  size_t tokens_ = 0;
  size_t tile_count_ = 0;
  int64_t blocks_ = 0;
  int64_t q_stride_ = 0;
  std::unique_ptr<DeviceVector<uint16_t>> q_, k_, v_, out_;
  std::unique_ptr<DeviceVector<DeviceRow>> device_rows_;
  std::unique_ptr<DeviceVector<int32_t>> tables_, table_begin_;
  std::unique_ptr<DeviceVector<PrefillTile>> tiles_;
};

const std::vector<Span> kCounts = {{0, 1}, {0, 3}, {0, 63}, {0, 64}, {0, 65}, {0, 127}, {0, 129}};
const std::vector<Span> kChunks = {{1, 1}, {77, 3}, {63, 65}, {128, 128}, {301, 200}, {999, 1}};

std::string label(const char* what, int number) {
  std::string text(what);
  return text.append(std::to_string(number));
}

std::vector<Case> make_cases() {
  std::vector<Case> cases;
  for (const int dims : {8, 16, 24, 32, 64, 80, 96, 128, 192, 256}) {
    for (const int block : {8, 16, 24, 32, 64, 128, 256}) {
      const bool common = dims == 64 || dims == 128 || dims == 256;
      if (!common && block != 16) continue;
      const std::string name = label("d", dims) + label(" b", block);
      cases.push_back(
          {.name = name + " counts", .head_dim = dims, .block_size = block, .rows = kCounts});
      cases.push_back(
          {.name = name + " chunks", .head_dim = dims, .block_size = block, .rows = kChunks});
    }
  }
  std::vector<Span> crowd;
  for (int i = 0; i < 70; ++i) crowd.push_back({i * 37 % 50, 1 + i * 29 % 45});
  for (const int dims : {16, 64, 96, 128, 256}) {
    const std::string name = label("d", dims);
    for (const int group : {1, 3, 8}) {
      cases.push_back({.name = name + label(" group ", group),
                       .head_dim = dims,
                       .q_heads = 2 * group,
                       .kv_heads = 2,
                       .rows = {{0, 300}, {129, 70}}});
    }
    for (const int window : {1, 50, 64, 257}) {
      cases.push_back({.name = name + label(" window ", window),
                       .head_dim = dims,
                       .block_size = window % 2 == 0 ? 16 : 64,
                       .rows = {{0, 130}, {700, 300}, {501, 1}, {63, 65}},
                       .window = window});
    }
    cases.push_back({.name = name + " softcap",
                     .head_dim = dims,
                     .rows = {{0, 200}, {33, 90}},
                     .softcap = 5.0f,
                     .spread = 3.0f});
    cases.push_back({.name = name + " softcap window",
                     .head_dim = dims,
                     .rows = {{300, 200}, {33, 90}},
                     .window = 100,
                     .softcap = 30.0f,
                     .spread = 10.0f});
    cases.push_back({.name = name + " crowd", .head_dim = dims, .block_size = 16, .rows = crowd});
    cases.push_back(
        {.name = name + " peaked", .head_dim = dims, .rows = {{0, 1000}}, .spread = 12.0f});
    cases.push_back({.name = name + " 1000 tokens", .head_dim = dims, .rows = {{0, 1000}}});
    cases.push_back({.name = name + " many rows",
                     .head_dim = dims,
                     .q_heads = 8,
                     .kv_heads = 2,
                     .rows = {{0, 1000},
                              {3, 1},
                              {0, 0},
                              {1500, 333},
                              {64, 64},
                              {0, 17},
                              {2047, 1},
                              {127, 2},
                              {5, 640}}});
  }
  return cases;
}

// `only`: a part of the cases' names; `kernel`: one of the two. Null: all.
int run(const char* only, const char* kernel) {
  std::random_device entropy;
  const unsigned seed = entropy();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  int failures = 0, checks = 0;
  for (const Case& c : make_cases()) {
    if (only != nullptr && c.name.find(only) == std::string::npos) continue;
    Problem problem(c, random);
    const std::vector<double> expected = problem.reference();
    const auto check = [&](const char* name, Launcher launch) {
      if (kernel != nullptr && std::strcmp(kernel, name) != 0) return;
      failures += !problem.check(name, launch, expected);
      ++checks;
    };
    check("mma", launch_prefill_mma);
    if (prefill_hopper_supports(problem.args())) check("hopper", launch_prefill_hopper);
  }
  std::printf("%d of %d checks failed\n", failures, checks);
  return failures == 0 && checks > 0 ? 0 : 1;
}

}  // namespace
}  // namespace trireme::cuda

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    return trireme::cuda::run(argc > 1 ? argv[1] : nullptr, argc > 2 ? argv[2] : nullptr);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
