// Products through cuBLASLt. The library is column-major: y[tokens, rows] = x Wᵀ is, to it,
// Y[rows, tokens] = op(W)[rows, cols] X[cols, tokens] with W transposed.
#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <map>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/element.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/skinny_gemm.h"

#define TRIREME_CUBLAS(call)                                                     \
  do {                                                                           \
    const cublasStatus_t trireme_status = (call);                                \
    if (trireme_status != CUBLAS_STATUS_SUCCESS) {                               \
      fail(ErrorCode::kInternal, "cuBLASLt: {}: {} ({}:{})", #call,              \
           cublasLtGetStatusString(trireme_status), "cublas_gemm.cc", __LINE__); \
    }                                                                            \
  } while (false)

namespace trireme::cuda {
namespace {

constexpr cudaDataType kElementType = kElementIsF16 ? CUDA_R_16F : CUDA_R_16BF;
constexpr int kCandidates = 16;
constexpr int kTimedRuns = 5;

// The descriptions of one product; made anew for each call, on the stack.
struct Problem {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t weight;
  cublasLtMatrixLayoutOpaque_t x;
  cublasLtMatrixLayoutOpaque_t y;

  explicit Problem(const Gemm& gemm) {
    const cudaDataType out = gemm.kind == GemmOut::kElement ? kElementType : CUDA_R_32F;
    TRIREME_CUBLAS(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    if (fused_bias(gemm)) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, gemm.bias);
    }
    const uint64_t rows = gemm.rows, cols = gemm.cols, tokens = gemm.tokens;
    TRIREME_CUBLAS(cublasLtMatrixLayoutInit(&weight, kElementType, cols, rows, gemm.cols));
    TRIREME_CUBLAS(cublasLtMatrixLayoutInit(&x, kElementType, cols, tokens, gemm.x_stride));
    TRIREME_CUBLAS(cublasLtMatrixLayoutInit(&y, out, rows, tokens, gemm.y_stride));
  }

  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    TRIREME_CUBLAS(cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof(value)));
  }

  // The library adds a float32 bias only to a float32 result.
  static bool fused_bias(const Gemm& gemm) {
    return gemm.bias != nullptr && gemm.kind != GemmOut::kElement;
  }
};

// One of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: the least that holds `tokens`.
int64_t bucket_of(int64_t tokens) {
  const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(tokens)));
  return power >= 4 && tokens <= power / 4 * 3 ? power / 4 * 3 : power;
}

uint32_t alignment_of(const void* pointer, int64_t stride_bytes) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(pointer) | static_cast<uint64_t>(stride_bytes);
  return static_cast<uint32_t>(std::min<uint64_t>(bits & (~bits + 1), 256));
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  TRIREME_CUDA(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

struct CublasGemm::State {
  // rows, cols, bucket of tokens, kind, fused bias, alignment of x and of y
  using Key = std::tuple<int64_t, int64_t, int64_t, GemmOut, bool, uint32_t, uint32_t>;

  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  std::map<Key, cublasLtMatmulAlgo_t> tuned;
  std::map<Key, cublasLtMatmulAlgo_t> guessed;  // for calls inside captures before any tuning

  ~State() {
    if (begin != nullptr) cudaEventDestroy(begin);
    if (end != nullptr) cudaEventDestroy(end);
    if (workspace != nullptr) cudaFree(workspace);
    if (handle != nullptr) cublasLtDestroy(handle);
  }

  static uint32_t y_bytes(const Gemm& gemm) { return gemm.kind == GemmOut::kElement ? 2 : 4; }

  static Key key_of(const Gemm& gemm) {
    return {gemm.rows,
            gemm.cols,
            bucket_of(gemm.tokens),
            gemm.kind,
            Problem::fused_bias(gemm),
            alignment_of(gemm.x, gemm.x_stride * 2),
            alignment_of(gemm.y, gemm.y_stride * y_bytes(gemm))};
  }

  std::vector<cublasLtMatmulAlgo_t> candidates(const Gemm& gemm, Problem& problem, int most) const {
    cublasLtMatmulPreferenceOpaque_t preference;
    TRIREME_CUBLAS(cublasLtMatmulPreferenceInit(&preference));
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      TRIREME_CUBLAS(
          cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)));
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_bytes});
    // Splits of the sum that add up in a fixed order, so that the same product gives the same bits,
    // and in float32: sums of parts rounded to 16 bits were seen to be off by 2^-5 of the result.
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    const uint32_t weight = alignment_of(gemm.weight, gemm.cols * 2);
    const uint32_t x = alignment_of(gemm.x, gemm.x_stride * 2);
    const uint32_t y = alignment_of(gemm.y, gemm.y_stride * y_bytes(gemm));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y);
    std::vector<cublasLtMatmulHeuristicResult_t> results(most);
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle, &problem.operation, &problem.weight, &problem.x, &problem.y, &problem.y,
        &preference, most, results.data(), &count);
    if (status != CUBLAS_STATUS_SUCCESS || count == 0) {
      fail(ErrorCode::kInternal, "cuBLASLt knows no algorithm for a product [{}, {}] x {} tokens",
           gemm.rows, gemm.cols, gemm.tokens);
    }
    std::vector<cublasLtMatmulAlgo_t> algorithms;
    for (int i = 0; i < count; ++i) {
      if (results[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(results[i].algo);
    }
    return algorithms;
  }

  cublasStatus_t multiply(const Gemm& gemm, Problem& problem, const cublasLtMatmulAlgo_t& algorithm,
                          void* y, cudaStream_t stream) const {
    const float alpha = 1.0f;
    const float beta = gemm.kind == GemmOut::kAddF32 ? 1.0f : 0.0f;
    return cublasLtMatmul(handle, &problem.operation, &alpha, gemm.weight, &problem.weight, gemm.x,
                          &problem.x, &beta, y, &problem.y, y, &problem.y, &algorithm, workspace,
                          workspace_bytes, stream);
  }

  // An algorithm chosen for another number of tokens of the bucket may not take this one.
  bool takes(Problem& problem, const cublasLtMatmulAlgo_t& algorithm) const {
    cublasLtMatmulHeuristicResult_t result;
    return cublasLtMatmulAlgoCheck(handle, &problem.operation, &problem.weight, &problem.x,
                                   &problem.y, &problem.y, &algorithm,
                                   &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= workspace_bytes;
  }

  // Milliseconds of the fastest of a few runs into `scratch`; negative: refused.
  float time(const Gemm& gemm, Problem& problem, const cublasLtMatmulAlgo_t& algorithm,
             void* scratch, cudaStream_t stream) const {
    float best = -1.0f;
    for (int i = 0; i < kTimedRuns; ++i) {
      TRIREME_CUDA(cudaEventRecord(begin, stream));
      if (multiply(gemm, problem, algorithm, scratch, stream) != CUBLAS_STATUS_SUCCESS) return -1;
      TRIREME_CUDA(cudaEventRecord(end, stream));
      TRIREME_CUDA(cudaEventSynchronize(end));
      float ms = 0.0f;
      TRIREME_CUDA(cudaEventElapsedTime(&ms, begin, end));
      if (i > 0) best = best < 0.0f ? ms : std::min(best, ms);
    }
    return best;
  }

  // The fastest candidate, timed into memory of its own: y is left alone. Without that memory, the
  // library's first choice.
  cublasLtMatmulAlgo_t choose(const Gemm& gemm, Problem& problem, cudaStream_t stream) {
    const std::vector<cublasLtMatmulAlgo_t> algorithms = candidates(gemm, problem, kCandidates);
    if (algorithms.size() <= 1) return algorithms.at(0);
    void* scratch = nullptr;
    const size_t bytes = size_t{y_bytes(gemm)} * gemm.y_stride * gemm.tokens;
    if (cudaMalloc(&scratch, bytes) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return algorithms[0];
    }
    size_t chosen = 0;
    float least = -1.0f;
    for (size_t i = 0; i < algorithms.size(); ++i) {
      const float ms = time(gemm, problem, algorithms[i], scratch, stream);
      if (ms > 0.0f && (least < 0.0f || ms < least)) {
        least = ms;
        chosen = i;
      }
    }
    TRIREME_CUDA(cudaFree(scratch));
    return algorithms[chosen];
  }
};

CublasGemm::CublasGemm(size_t workspace_bytes) : state_(std::make_unique<State>()) {
  TRIREME_CUBLAS(cublasLtCreate(&state_->handle));
  if (workspace_bytes > 0) TRIREME_CUDA(cudaMalloc(&state_->workspace, workspace_bytes));
  state_->workspace_bytes = workspace_bytes;
  TRIREME_CUDA(cudaEventCreate(&state_->begin));
  TRIREME_CUDA(cudaEventCreate(&state_->end));
}

CublasGemm::~CublasGemm() = default;

void CublasGemm::tune(const Gemm& gemm, cudaStream_t stream) {
  const State::Key key = State::key_of(gemm);
  if (state_->tuned.contains(key) || is_capturing(stream)) return;
  Problem problem(gemm);
  state_->tuned.emplace(key, state_->choose(gemm, problem, stream));
}

void CublasGemm::run(const Gemm& gemm, cudaStream_t stream) {
  if (gemm.norm != nullptr || gemm.kind == GemmOut::kSwiGlu || gemm.kind == GemmOut::kGeGlu) {
    fail(ErrorCode::kInternal, "a cuBLASLt product takes neither norm nor gate");
  }
  if (gemm.tokens == 0) return;
  const State::Key key = State::key_of(gemm);
  Problem problem(gemm);
  if (!state_->tuned.contains(key)) tune(gemm, stream);
  const auto found = state_->tuned.find(key);
  const cublasLtMatmulAlgo_t* algorithm = nullptr;
  if (found != state_->tuned.end() && state_->takes(problem, found->second)) {
    algorithm = &found->second;
  } else {
    auto guess = state_->guessed.find(key);
    if (guess == state_->guessed.end() || !state_->takes(problem, guess->second)) {
      guess =
          state_->guessed.insert_or_assign(key, state_->candidates(gemm, problem, 1).at(0)).first;
    }
    algorithm = &guess->second;
  }
  TRIREME_CUBLAS(state_->multiply(gemm, problem, *algorithm, gemm.y, stream));
  if (gemm.bias != nullptr && !Problem::fused_bias(gemm)) launch_add_bias(gemm, stream);
}

}  // namespace trireme::cuda
