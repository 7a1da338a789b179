// Whether tensor ranks should share out the rows of a prefill's norms (sequence-parallel norm):
// an all-reduce, then addition and norm of all rows, beside a reduce-scatter, addition and norm of
// this rank's rows, and an all-gather of what comes out. Through NCCL both, one GPU a rank.
//   launch/mpirun -n 2 build/release/bench/sequence_norm_bench [WIDTH]
// One JSON line per figure: {name, value, unit, baseline, ratio}; ratio is baseline / value, above
// 1 is faster.
#include <fmt/core.h>
#include <nccl.h>

#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/cuda_module.h"
#include "parallel/world.h"

namespace trireme {
namespace {

void check(ncclResult_t result) {
  if (result != ncclSuccess) fail(ErrorCode::kUnavailable, "NCCL: {}", ncclGetErrorString(result));
}

int run(int argc, char** argv) {
  MpiEnvironment environment(&argc, &argv);
  auto host = environment.make_control();
  const int64_t width = argc > 1 ? std::atoll(argv[1]) : 4096;
  const int ranks = host->size();
  ThreadPool pool(1);
  auto backend = make_cuda_backend(pool, environment.local_rank());
  Backend& b = *backend;
  ncclUniqueId id{};
  if (host->rank() == 0) check(ncclGetUniqueId(&id));
  host->broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
  constexpr int64_t kMostRows = 8192;
  const auto bytes = static_cast<size_t>(kMostRows * width * 2);
  const Buffer delta = b.allocate(bytes), out = b.allocate(bytes), residual = b.allocate(2 * bytes);
  const Buffer weight = b.upload(std::vector<float>(static_cast<size_t>(width), 1.0f));
  ncclComm_t comm = nullptr;
  check(ncclCommInitRank(&comm, ranks, id, host->rank()));
  const auto stream = static_cast<cudaStream_t>(b.stream());
  const auto view = [&](const Buffer& buffer, DType dtype, int64_t rows) {
    return MatrixView{buffer.data(), dtype, rows, width, width};
  };
  b.fill_bytes(view(delta, DType::kBF16, kMostRows), 0);
  b.fill_bytes(view(residual, DType::kF32, kMostRows), 0x3c);
  // Microseconds of the slowest rank; the least of five rounds.
  const auto us = [&](const std::function<void()>& work) {
    double best = 1e30;
    for (int round = 0; round < 5; ++round) {
      host->barrier();
      best = std::min(best, largest_of_ranks(*host, b.measure(work, 20) * 1e6));
    }
    return best;
  };
  for (int64_t rows = 256; rows <= kMostRows; rows *= 2) {
    const MatrixView terms = view(delta, DType::kBF16, rows);
    const MatrixView sums = view(residual, DType::kF32, rows);
    const MatrixView normed = view(out, DType::kBF16, rows);
    const int64_t share = rows / ranks, first = share * host->rank();
    const auto count = static_cast<size_t>(rows * width);
    const auto norm = [&](int64_t begin, int64_t size) {
      b.add_rms_norm(sums.row_range(begin, size), terms.row_range(begin, size), weight.as<float>(),
                     1e-5f, normed.row_range(begin, size));
    };
    const auto all_reduce = [&] {
      check(ncclAllReduce(delta.data(), delta.data(), count, ncclBfloat16, ncclSum, comm, stream));
    };
    const double sum = us(all_reduce);
    const double whole = us([&] {
      all_reduce();
      norm(0, rows);
    });
    const double shared = us([&] {
      check(ncclReduceScatter(delta.data(), terms.row_range(first, share).data,
                              count / static_cast<size_t>(ranks), ncclBfloat16, ncclSum, comm,
                              stream));
      norm(first, share);
      check(ncclAllGather(normed.row_range(first, share).data, out.data(),
                          count / static_cast<size_t>(ranks), ncclBfloat16, comm, stream));
    });
    if (host->rank() != 0) continue;
    fmt::print(
        "{{\"name\":\"sum, add and norm of {} rows of {}, {} GPUs: rows shared out\",\"value\":"
        "{:.1f},\"unit\":\"us\",\"baseline\":\"all-reduce {:.1f} us, then all rows: {:.1f} us\","
        "\"ratio\":{:.3f}}}\n",
        rows, width, ranks, shared, sum, whole, whole / shared);
    std::fflush(stdout);
  }
  b.synchronize();
  host->barrier();
  check(ncclCommDestroy(comm));
  return 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  try {
    return trireme::run(argc, argv);
  } catch (const trireme::Error& error) {
    std::fprintf(stderr, "sequence_norm_bench: %s\n", error.what());
    trireme::MpiEnvironment::abort(trireme::exit_code(error.code()));
  }
}
