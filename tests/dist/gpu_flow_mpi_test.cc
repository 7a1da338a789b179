// Activations through stages on GPUs, one rank a GPU, many steps in flight: every stage adds its
// number to what comes, and the last one looks at the sum. Messages of every size take turns: small
// ones, large ones, and those that travel in place; hosts stall at random. A plain program for 2 or
// more ranks under launch/mpirun; exits with 77 where a rank has no GPU of its own.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>

#include "base/dtype.h"
#include "base/log.h"
#include "base/thread_pool.h"
#include "kernels/cuda_module.h"
#include "parallel/world.h"
#include "runtime/model/activation_flow.h"
#include "tests/dist/gpu_ranks.h"

namespace trireme {
namespace {

constexpr int64_t kHidden = 4096, kMostTokens = 6000;
constexpr int kSteps = 200;

ModelShape shape() {
  ModelShape model;
  model.layers = 16;
  model.hidden = kHidden;
  model.q_heads = model.kv_heads = 8;
  model.head_dim = 64;
  model.ffn = 1024;
  model.vocab = 1024;
  return model;
}

// As many tokens in every run and on every rank: from 16 KB to 96 MB.
int64_t tokens_of(int step) {
  constexpr int64_t kTokens[] = {1, 16, 4, 300, 16, 64, 1, 2000};
  return step % 50 == 49 ? kMostTokens : kTokens[step % 8];
}

// A step's float, all of whose bytes are alike: fill_bytes can make it on the device.
uint8_t byte_of(int step) { return static_cast<uint8_t>(0x3e + step % 12); }
float float_of(int step) {
  const uint32_t bits = byte_of(step) * 0x01010101u;
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

class Run {
 public:
  Run(World& world, int device)
      : world_(world),
        backend_(make_cuda_backend(pool_, device)),
        edge_(make_stage_edge(world)),
        flow_(edge_, *backend_, kMostTokens, kHidden),
        x_(backend_->allocate(static_cast<size_t>(kMostTokens * kHidden * 4))),
        delta_(backend_->allocate(static_cast<size_t>(kMostTokens * kHidden * 2))) {
    // Ones in bf16: 0x3f80; made of a float32 view, by halves.
    std::vector<float> ones(static_cast<size_t>(kMostTokens * kHidden / 2));
    const uint32_t two = 0x3f803f80u;
    std::memcpy(ones.data(), &two, 4);
    std::fill(ones.begin(), ones.end(), ones[0]);
    delta_ = backend_->upload(ones);
  }

  // The number of wrong sums that this rank has seen.
  int steps() {
    std::mt19937 random(static_cast<unsigned>(world_.rank));
    int wrong = 0;
    for (int step = 0; step < kSteps; ++step) {
      if (random() % 8 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
      const int64_t tokens = tokens_of(step);
      const MatrixView x{x_.data(), DType::kF32, tokens, kHidden, kHidden};
      const MatrixView delta{delta_.data(), DType::kBF16, tokens, kHidden, kHidden};
      if (world_.first_stage()) backend_->fill_bytes(x, byte_of(step));
      flow_.receive(x);
      backend_->add_rms_norm(x, delta, nullptr, 1e-5f, delta);
      flow_.send(x);
      if (world_.last_stage()) wrong += !is_sum(x, step);
    }
    backend_->synchronize();
    return wrong;
  }

 private:
  bool is_sum(MatrixView x, int step) {
    float expected = float_of(step);
    for (int stage = 0; stage < world_.layout.pipeline(); ++stage) expected += 1.0f;
    const MatrixView read = backend_->read_back(x);
    const float* values = read.f32();
    const auto count = read.rows * read.cols;
    const auto first =
        std::find_if(values, values + count, [expected](float value) { return value != expected; });
    if (first == values + count) return true;
    std::printf("rank %d step %d (%lld tokens): element %lld is %g, not %g\n", world_.rank, step,
                static_cast<long long>(x.rows), static_cast<long long>(first - values),
                static_cast<double>(*first), static_cast<double>(expected));
    return false;
  }

  World& world_;
  ThreadPool pool_{1};
  std::unique_ptr<Backend> backend_;
  StageEdge edge_;
  ActivationFlow flow_;
  Buffer x_, delta_;
};

int run(int argc, char** argv) {
  MpiEnvironment mpi(&argc, &argv);
  log::init("warn", "rank " + std::to_string(mpi.rank()));
  if (mpi.size() < 2) {
    std::printf("skipped: it takes 2 ranks or more\n");
    return 77;
  }
  if (!every_rank_has_a_gpu(mpi)) return 77;
  int wrong = 0;
  for (const int tensor : {1, 2}) {
    if (mpi.size() % tensor != 0 || mpi.size() / tensor < 2) continue;
    LayoutSpec spec;
    spec.stages.assign(static_cast<size_t>(mpi.size() / tensor), {tensor, 0});
    World world = make_world(mpi.make_control(), make_layout(spec, shape(), mpi.size()));
    connect_devices(world, mpi.local_rank());
    const int mine = Run(world, mpi.local_rank()).steps();
    std::vector<int> all(static_cast<size_t>(mpi.size()));
    world.control->all_gather(std::as_bytes(std::span(&mine, 1)),
                              std::as_writable_bytes(std::span(all)));
    for (const int one : all) wrong += one;
    if (mpi.rank() == 0) {
      std::printf("%s: %d steps, %d wrong\n", world.layout.describe().c_str(), kSteps, wrong);
    }
  }
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) { return trireme::run(argc, argv); }
