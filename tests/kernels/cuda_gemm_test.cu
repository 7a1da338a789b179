// The GPU's products against sums in float64: every kind, odd sizes, fresh random inputs, poisoned
// outputs with guards around them, and that a token's bits do not depend on the other tokens.
// A program: exit code 1 and one line per failure.
//   cuda_gemm_test [small] [seed]     small: without the large shapes, for compute-sanitizer
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/skinny_gemm.h"

namespace trireme::cuda {
namespace {

int failures = 0;

void report(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  if (failures <= 40) std::printf("FAILED: %s\n", what.c_str());
}

__device__ uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

template <typename T>
__global__ void fill_random(T* to, int64_t count, uint64_t seed, float scale, float shift) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint64_t bits = mix(seed * 0x9e3779b97f4a7c15ull + i);
    const float uniform = static_cast<float>(bits >> 40) / 8388608.0f - 1.0f;
    to[i] = static_cast<T>(uniform * scale + shift);
  }
}

// Device memory that frees itself.
struct Memory {
  void* data = nullptr;
  size_t bytes;
  explicit Memory(size_t size) : bytes(size) { TRIREME_CUDA(cudaMalloc(&data, size)); }
  ~Memory() { cudaFree(data); }
  Memory(const Memory&) = delete;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  template <typename T>
  void randomize(uint64_t seed, float scale, float shift = 0.0f) {
    fill_random<<<256, 256>>>(as<T>(), bytes / sizeof(T), seed, scale, shift);
    TRIREME_CUDA(cudaGetLastError());
  }
  std::vector<unsigned char> to_host() const {
    std::vector<unsigned char> host(bytes);
    TRIREME_CUDA(cudaMemcpy(host.data(), data, bytes, cudaMemcpyDeviceToHost));
    return host;
  }
};

// The sum and the root of the sum of squared products, of one (token, row), in float64.
__global__ void reference(Gemm gemm, double* sums, double* sizes) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int token = blockIdx.y;
  if (row >= gemm.rows) return;
  const auto* w = static_cast<const Element*>(gemm.weight) + row * gemm.cols;
  double squares = 0.0;
  const float* residual = static_cast<const float*>(gemm.x) + token * gemm.x_stride;
  for (int64_t k = 0; gemm.norm != nullptr && k < gemm.cols; ++k) {
    squares += static_cast<double>(residual[k]) * residual[k];
  }
  const double rms = sqrt(squares / gemm.cols + gemm.norm_eps);
  const auto* plain = static_cast<const Element*>(gemm.x) + token * gemm.x_stride;
  double sum = 0.0, size = 0.0;
  for (int64_t k = 0; k < gemm.cols; ++k) {
    const double x = gemm.norm != nullptr ? residual[k] / rms * gemm.norm[k]
                                          : static_cast<double>(widen(plain[k]));
    const double product = x * static_cast<double>(widen(w[k]));
    sum += product;
    size += product * product;
  }
  if (gemm.bias != nullptr) sum += gemm.bias[row];
  sums[token * gemm.rows + row] = sum;
  sizes[token * gemm.rows + row] = sqrt(size);
}

bool is_gated(GemmOut kind) { return kind == GemmOut::kSwiGlu || kind == GemmOut::kGeGlu; }
bool is_narrow(GemmOut kind) { return kind == GemmOut::kElement || is_gated(kind); }
const char* name_of(GemmOut kind) {
  constexpr const char* kNames[] = {"element", "f32", "add", "swiglu", "geglu"};
  return kNames[static_cast<int>(kind)];
}

// To the nearest element: up to half a step.
constexpr double kRounding = kElementIsF16 ? 1.0 / 2048 : 1.0 / 256;

double activated(GemmOut kind, double gate) {
  if (kind == GemmOut::kSwiGlu) return gate / (1.0 + std::exp(-gate));
  return 0.5 * gate *
         (1.0 + std::tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)));
}

struct Case {
  int64_t rows;
  int64_t cols;
  int tokens;
  GemmOut kind = GemmOut::kElement;
  bool norm = false;
  bool bias = false;
};

std::string describe(const Case& c) {
  return std::string("[") + std::to_string(c.rows) + ", " + std::to_string(c.cols) + "] x " +
         std::to_string(c.tokens) + " " + name_of(c.kind) + (c.norm ? " norm" : "") +
         (c.bias ? " bias" : "");
}

// Inputs of one case, random; outputs poisoned (NaN bits), or random where they are added to.
class Setup {
 public:
  Setup(const Case& c, uint64_t seed)
      : case_(c),
        out_rows_(is_gated(c.kind) ? c.rows / 2 : c.rows),
        y_stride_(out_rows_ + 5),
        element_(is_narrow(c.kind) ? 2 : 4),
        x_((c.norm ? 4 : 2) * (c.cols + 16) * c.tokens),
        weight_(2 * c.rows * c.cols),
        bias_(4 * c.rows),
        norm_(4 * c.cols),
        y_(element_ * (y_stride_ * c.tokens + 2 * kGuard)) {
    const float scale = 1.7f / std::sqrt(static_cast<float>(c.cols));
    weight_.randomize<Element>(seed, scale);
    if (c.norm) {
      x_.randomize<float>(seed + 1, 30.0f, 3.0f);
    } else {
      x_.randomize<Element>(seed + 1, 2.0f);
    }
    bias_.randomize<float>(seed + 2, 1.0f);
    norm_.randomize<float>(seed + 3, 1.0f, 0.5f);
    reset_y(seed);
    gemm.x = x_.data;
    gemm.x_stride = c.cols + 16;
    gemm.weight = weight_.data;
    gemm.rows = c.rows;
    gemm.cols = c.cols;
    gemm.bias = c.bias ? bias_.as<float>() : nullptr;
    gemm.kind = c.kind;
    gemm.y = y_.as<char>() + kGuard * element_;
    gemm.y_stride = y_stride_;
    gemm.tokens = c.tokens;
    gemm.norm = c.norm ? norm_.as<float>() : nullptr;
    gemm.norm_eps = 1e-5f;
  }

  void reset_y(uint64_t seed) {
    if (case_.kind == GemmOut::kAddF32) {
      y_.randomize<float>(seed + 4, 5.0f);
    } else {
      TRIREME_CUDA(cudaMemset(y_.data, 0xff, y_.bytes));
    }
    before_ = y_.to_host();
  }

  // Of one token, as the raw bytes of its results.
  std::vector<unsigned char> token_bytes(int token) const {
    const std::vector<unsigned char> all = y_.to_host();
    const auto begin = all.begin() + element_ * (kGuard + token * y_stride_);
    return {begin, begin + element_ * out_rows_};
  }

  void check(const std::string& what, double bias_rounding = 0.0) const;

  Gemm gemm;

 private:
  static constexpr int64_t kGuard = 64;  // elements
  double value_at(const std::vector<unsigned char>& bytes, int64_t at) const {
    if (element_ == 4) return reinterpret_cast<const float*>(bytes.data())[at];
    return element_value(reinterpret_cast<const uint16_t*>(bytes.data())[at]);
  }

  Case case_;
  int64_t out_rows_;
  int64_t y_stride_;
  int64_t element_;
  Memory x_, weight_, bias_, norm_, y_;
  std::vector<unsigned char> before_;
};

void Setup::check(const std::string& what, double bias_rounding) const {
  const std::vector<unsigned char> after = y_.to_host();
  const int64_t count = case_.rows * case_.tokens;
  Memory sums(8 * count), sizes(8 * count);
  reference<<<dim3((case_.rows + 63) / 64, case_.tokens), 64>>>(gemm, sums.as<double>(),
                                                                sizes.as<double>());
  TRIREME_CUDA(cudaGetLastError());
  const std::vector<unsigned char> sum_bytes = sums.to_host(), size_bytes = sizes.to_host();
  const auto* sum = reinterpret_cast<const double*>(sum_bytes.data());
  const auto* size = reinterpret_cast<const double*>(size_bytes.data());
  // Sums in float32 on tensor cores, which cut off rather than round; with the norm, activations
  // rounded to bf16 (within 2^-8, most of them within 2^-9).
  const double relative = case_.norm ? 10.0 * 0.58 / 512.0 : 4e-6 + 1e-9 * case_.cols;
  double worst = 0.0;
  for (int token = 0; token < case_.tokens; ++token) {
    for (int64_t row = 0; row < out_rows_; ++row) {
      const int64_t at = kGuard + token * y_stride_ + row, i = token * case_.rows + row;
      double expected = sum[i], bound = relative * size[i];
      if (is_gated(case_.kind)) {
        const double up = sum[i + out_rows_], gate = activated(case_.kind, sum[i]);
        bound =
            1.2 * bound * std::abs(up) + relative * size[i + out_rows_] * (std::abs(gate) + bound);
        expected = gate * up;
      }
      if (case_.kind == GemmOut::kAddF32) expected += value_at(before_, at);
      bound += std::abs(expected) * (element_ == 2 ? kRounding : 1e-6) + 1e-6 + bias_rounding;
      const double error = std::abs(value_at(after, at) - expected) / bound;
      worst = error > worst || std::isnan(error) ? error : worst;
    }
  }
  report(worst <= 1.0,
         what + " " + describe(case_) + ": error " + std::to_string(worst) + " of the bound");
  bool kept = true;
  for (int64_t at = 0; at < static_cast<int64_t>(after.size()) / element_; ++at) {
    const int64_t column = (at - kGuard) % y_stride_;
    const bool inside =
        at >= kGuard && at < kGuard + y_stride_ * case_.tokens && column < out_rows_;
    if (!inside) {
      kept = kept && std::memcmp(&after[at * element_], &before_[at * element_], element_) == 0;
    }
  }
  report(kept, what + " " + describe(case_) + ": wrote outside its results");
}

void check_skinny(const Case& c, uint64_t seed) {
  Setup setup(c, seed);
  launch_skinny_gemm(setup.gemm, nullptr, nullptr);
  TRIREME_CUDA(cudaDeviceSynchronize());
  setup.check("skinny");
}

void check_all_kinds(uint64_t seed, bool with_large) {
  const std::pair<int64_t, int64_t> small[] = {{1, 8},       {3, 72},    {65, 512},   {66, 520},
                                               {576, 576},   {960, 576}, {576, 1536}, {3072, 576},
                                               {1000, 2048}, {18, 16384}};
  for (const auto& [rows, cols] : small) {
    if (!with_large && rows * cols > 100000) continue;
    for (int tokens : {1, 2, 5, 8, 9, 16}) {
      if (!with_large && tokens != 5 && tokens != 9) continue;
      for (int kind = 0; kind < 5; ++kind) {
        const bool gated = is_gated(static_cast<GemmOut>(kind));
        if (gated && rows % 2 != 0) continue;
        for (int option = 0; option < (gated ? 2 : 4); ++option) {
          if (option % 2 == 1 && !kSkinnyNorms) continue;
          check_skinny(
              {rows, cols, tokens, static_cast<GemmOut>(kind), option % 2 == 1, option >= 2},
              seed++);
        }
      }
    }
  }
  if (!with_large) return;
  using enum GemmOut;
  const Case large[] = {{6144, 4096, 1, kElement, true}, {6144, 4096, 16, kElement, true, true},
                        {4096, 4096, 7, kAddF32},        {28672, 4096, 3, kSwiGlu, true},
                        {28672, 4096, 16, kGeGlu, true}, {4096, 14336, 1, kAddF32},
                        {4096, 14336, 12, kAddF32},      {49152, 576, 4, kF32, true},
                        {2560, 8192, 8, kElement, true}, {8192, 2048, 15, kAddF32}};
  for (Case c : large) {
    c.norm = c.norm && kSkinnyNorms;
    check_skinny(c, seed++);
  }
}

// Every built shape gives every token the same bits, alone or among others.
void check_independence(uint64_t seed, bool all) {
  const SkinnyShape shapes[] = {{4, 4},    {4, 3},    {2, 6},          {0, 4, 1},
                                {0, 6, 2}, {0, 0, 1}, {0, 3, 1, true}, {0, 0, 2, true}};
  for (bool norm : {false, true}) {
    if (norm && !kSkinnyNorms) continue;
    const Case c{1000, 1544, 16, GemmOut::kF32, norm};
    Setup setup(c, seed++);
    launch_skinny_gemm(setup.gemm, nullptr, nullptr);
    std::vector<std::vector<unsigned char>> expected;
    for (int token = 0; token < 16; ++token) expected.push_back(setup.token_bytes(token));
    const Gemm whole = setup.gemm;
    const auto same = [&](int first, int tokens, const SkinnyShape& shape) {
      setup.reset_y(seed);
      setup.gemm.tokens = tokens;
      setup.gemm.x = static_cast<const char*>(whole.x) + first * whole.x_stride * (norm ? 4 : 2);
      if (!launch_skinny_gemm_as(shape, setup.gemm, true, nullptr)) return true;  // not built
      bool equal = true;
      for (int i = 0; i < tokens; ++i) equal &= setup.token_bytes(i) == expected[first + i];
      setup.gemm = whole;
      return equal;
    };
    for (const SkinnyShape& shape : shapes) {
      for (int first : {0, 3, 15}) {
        for (int tokens : {1, 2, 8, 13, 16}) {
          if (first + tokens > 16 || (!all && tokens != 13)) continue;
          report(same(first, tokens, shape), "a token's bits depend on others: groups " +
                                                 std::to_string(shape.groups) + ", depth " +
                                                 std::to_string(shape.depth) + ", tokens " +
                                                 std::to_string(tokens));
        }
      }
    }
  }
}

// A chain in which each product reads what the last one wrote, as launched for serving (each starts
// before the last has ended; in a graph too), against one launched without overlap.
void check_chain(uint64_t seed) {
  constexpr int kHidden = 1024, kInner = 3072;
  for (int tokens : {1, 5, 16}) {
    Memory up(2 * 2 * kInner * kHidden), down(2 * kHidden * kInner), norm(4 * kHidden);
    Memory residual(4 * kHidden * tokens), inner(2 * kInner * tokens);
    Memory normed(2 * kHidden * tokens);
    up.randomize<Element>(seed++, 0.03f);
    down.randomize<Element>(seed++, 0.03f);
    norm.randomize<float>(seed++, 0.5f, 1.0f);
    Gemm first, second;
    first.x = residual.data, first.x_stride = kHidden, first.weight = up.data;
    first.rows = 2 * kInner, first.cols = kHidden, first.kind = GemmOut::kSwiGlu;
    first.y = inner.data, first.y_stride = kInner, first.tokens = tokens;
    if (kSkinnyNorms) {
      first.norm = norm.as<float>(), first.norm_eps = 1e-6f;
    } else {
      first.x = normed.data;
    }
    second.x = inner.data, second.x_stride = kInner, second.weight = down.data;
    second.rows = kHidden, second.cols = kInner, second.kind = GemmOut::kAddF32;
    second.y = residual.data, second.y_stride = kHidden, second.tokens = tokens;
    cudaStream_t stream;
    TRIREME_CUDA(cudaStreamCreate(&stream));
    const auto run = [&](bool overlap) {
      for (int i = 0; i < 40; ++i) {
        if (!kSkinnyNorms) {
          launch_rms_norm(residual.as<float>(), nullptr, 0, norm.as<float>(), 1e-6f, tokens,
                          kHidden, normed.data, stream);
        }
        launch_skinny_gemm_as(choose_skinny_shape(first), first, overlap, stream);
        launch_skinny_gemm_as(choose_skinny_shape(second), second, overlap, stream);
      }
    };
    const auto result_of = [&](auto&& work) {
      residual.randomize<float>(seed, 1.0f);
      TRIREME_CUDA(cudaMemset(inner.data, 0xff, inner.bytes));
      TRIREME_CUDA(cudaDeviceSynchronize());
      work();
      TRIREME_CUDA(cudaStreamSynchronize(stream));
      return residual.to_host();
    };
    const auto expected = result_of([&] { run(false); });
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    TRIREME_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    run(true);
    TRIREME_CUDA(cudaStreamEndCapture(stream, &graph));
    TRIREME_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    for (int i = 0; i < 5; ++i) {
      report(result_of([&] { run(true); }) == expected, "an overlapping chain differs");
      report(result_of([&] { TRIREME_CUDA(cudaGraphLaunch(executable, stream)); }) == expected,
             "a chain in a graph differs");
    }
    const auto* values = reinterpret_cast<const float*>(expected.data());
    bool sane = true;
    for (int i = 0; i < kHidden * tokens; ++i) sane &= std::isfinite(values[i]);
    report(sane, "the chain's result is not finite");
    TRIREME_CUDA(cudaGraphExecDestroy(executable));
    TRIREME_CUDA(cudaGraphDestroy(graph));
    TRIREME_CUDA(cudaStreamDestroy(stream));
  }
}

void check_cublas(uint64_t seed, bool all) {
  CublasGemm cublas;
  cudaStream_t stream;
  TRIREME_CUDA(cudaStreamCreate(&stream));
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{65, 512}, {576, 1536}, {3, 8}, {1024, 2048}}) {
    for (int tokens : {1, 17, 64, 333}) {
      // The library tries its algorithms at each of them: most of a sanitizer's time.
      if (!all && (tokens != 17 || rows * cols > 100000)) continue;
      for (GemmOut kind : {GemmOut::kElement, GemmOut::kF32, GemmOut::kAddF32}) {
        for (bool bias : {false, true}) {
          Setup setup({rows, cols, tokens, kind, false, bias}, seed++);
          TRIREME_CUDA(cudaDeviceSynchronize());
          cublas.run(setup.gemm, stream);
          TRIREME_CUDA(cudaStreamSynchronize(stream));
          setup.check("cublas", kind == GemmOut::kElement && bias ? 5 * kRounding : 0.0);
        }
      }
    }
  }
  // Inside a capture, at a shape it has not seen.
  Setup setup({320, 264, 48, GemmOut::kAddF32, false, true}, seed++);
  TRIREME_CUDA(cudaDeviceSynchronize());
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  TRIREME_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  cublas.run(setup.gemm, stream);
  TRIREME_CUDA(cudaStreamEndCapture(stream, &graph));
  TRIREME_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  TRIREME_CUDA(cudaGraphLaunch(executable, stream));
  TRIREME_CUDA(cudaStreamSynchronize(stream));
  setup.check("cublas captured");
  TRIREME_CUDA(cudaGraphExecDestroy(executable));
  TRIREME_CUDA(cudaGraphDestroy(graph));
  TRIREME_CUDA(cudaStreamDestroy(stream));
}

void check_refusals() {
  const auto refused = [](auto&& change) {
    Setup setup({16, 64, 4}, 1);
    change(setup.gemm);
    try {
      launch_skinny_gemm(setup.gemm, nullptr, nullptr);
    } catch (const std::exception&) {
      return true;
    }
    return false;
  };
  report(!refused([](Gemm&) {}), "refused a good product");
  report(refused([](Gemm& gemm) { gemm.tokens = 17; }), "took 17 tokens");
  report(refused([](Gemm& gemm) { gemm.tokens = 0; }), "took no tokens");
  report(refused([](Gemm& gemm) { gemm.cols = 60; }), "took 60 columns");
  report(refused([](Gemm& gemm) { gemm.x = static_cast<const char*>(gemm.x) + 2; }),
         "took unaligned activations");
  report(refused([](Gemm& gemm) { gemm.kind = GemmOut::kSwiGlu, gemm.rows = 15; }),
         "took a gate without an up row");
  TRIREME_CUDA(cudaDeviceSynchronize());
}

}  // namespace
}  // namespace trireme::cuda

int main(int argc, char** argv) {
  using namespace trireme::cuda;
  const bool small = argc > 1 && std::strcmp(argv[1], "small") == 0;
  const char* seed_text = argc > (small ? 2 : 1) ? argv[argc - 1] : nullptr;
  const uint64_t seed =
      seed_text != nullptr ? std::strtoull(seed_text, nullptr, 10) : std::random_device{}();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  try {
    check_refusals();
    check_all_kinds(seed, !small);
    check_independence(seed + 100000, !small);
    if (!small) check_chain(seed + 200000);
    check_cublas(seed + 300000, !small);
    TRIREME_CUDA(cudaDeviceSynchronize());
  } catch (const std::exception& error) {
    report(false, error.what());
  }
  std::printf("%s: %d failures\n", failures == 0 ? "passed" : "FAILED", failures);
  return failures == 0 ? 0 : 1;
}
