// Prefill products on CPU beside oneDNN's, on the shapes of a model and in turn. One JSON object a
// line on stdout: {name, value, unit, baseline, ratio}, in GFLOP/s; baseline is oneDNN's rate.
//
//   onednn_bench [--threads N] [--rows N] [--rounds N]
//
// Ours takes float32 activations and multiplies exactly widened weights (docs/adr/0008); oneDNN is
// asked for float32 x float32 and for bf16 x bf16 into float32, its weights reordered once to the
// layout that it likes best. Its threads are OpenMP's, which spin for milliseconds after a product
// on cores that ours then share: each side is timed when the other's threads sleep and its own are
// up.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <dnnl.hpp>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/backend.h"

namespace trireme {
namespace {

struct Shape {
  const char* name;
  int64_t rows, cols;  // of the weight
};
// A Llama layer of 1.5 billion parameters (hidden 2048, feed-forward 5632).
constexpr Shape kShapes[] = {
    {"qkv", 2560, 2048}, {"out", 2048, 2048}, {"gate_up", 11264, 2048}, {"down", 2048, 5632}};

struct Options {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  int64_t rows = 512;
  int rounds = 7;
};

double seconds_of(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Of the second of two products, after a pause in which the other side's threads fall asleep.
double seconds_alone(const std::function<void()>& product) {
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  product();
  return seconds_of(product);
}

// y[m, n] = x[m, k] w[n, k]ᵀ, float32 out.
class OneDnn {
 public:
  using Type = dnnl::memory::data_type;
  using Tag = dnnl::memory::format_tag;

  OneDnn(int64_t m, const Shape& shape, Type type) : engine_(dnnl::engine::kind::cpu, 0) {
    const dnnl::memory::dims x{m, shape.cols}, w{shape.cols, shape.rows}, y{m, shape.rows};
    const dnnl::matmul::primitive_desc made(
        dnnl::matmul::desc({x, type, Tag::ab}, {w, type, Tag::any}, {y, Type::f32, Tag::ab}),
        engine_);
    matmul_ = dnnl::matmul(made);
    x_ = dnnl::memory(made.src_desc(), engine_);
    w_ = dnnl::memory(made.weights_desc(), engine_);
    y_ = dnnl::memory(made.dst_desc(), engine_);
    dnnl::memory from({w, type, Tag::ba}, engine_);  // rows of the weight one after the other
    fill(from, type, shape.rows * shape.cols);
    fill(x_, type, m * shape.cols);
    dnnl::reorder(from, w_).execute(stream_, from, w_);
    stream_.wait();
    implementation = made.impl_info_str();
  }
  void run() {
    matmul_.execute(stream_, {{DNNL_ARG_SRC, x_}, {DNNL_ARG_WEIGHTS, w_}, {DNNL_ARG_DST, y_}});
    stream_.wait();
  }
  std::string implementation;

 private:
  static void fill(dnnl::memory& memory, Type type, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = static_cast<float>(i % 13 - 6) / 8;
      if (type == Type::f32) {
        static_cast<float*>(memory.get_data_handle())[i] = value;
      } else {
        static_cast<uint16_t*>(memory.get_data_handle())[i] = f32_to_bf16(value);
      }
    }
  }

  dnnl::engine engine_;
  dnnl::stream stream_{engine_};
  dnnl::matmul matmul_;
  dnnl::memory x_, w_, y_;
};

class Ours {
 public:
  Ours(ThreadPool& pool, int64_t m, const Shape& shape, QuantFormat format)
      : backend_(make_cpu_backend(pool, best_cpu_isa())),
        m_(m),
        shape_(shape),
        x_(static_cast<size_t>(m * shape.cols), 0.5f),
        y_(static_cast<size_t>(m * shape.rows)) {
    std::vector<float> row(static_cast<size_t>(shape.cols), 0.25f);
    std::vector<uint16_t> half(row.size(), f32_to_bf16(0.25f));
    const bool wide = format == QuantFormat::kF32;
    weight_ = backend_->make_weight(
        {format, shape.rows, shape.cols, 0, shape.cols, [&](int64_t, std::byte*) {
           return wide ? reinterpret_cast<const std::byte*>(row.data())
                       : reinterpret_cast<const std::byte*>(half.data());
         }});
  }
  void run() {
    const LinearPart part{&weight_, nullptr, matrix_f32(y_.data(), m_, shape_.rows), false};
    backend_->linear(matrix_f32(x_.data(), m_, shape_.cols), {&part, 1});
  }

 private:
  std::unique_ptr<Backend> backend_;
  int64_t m_;
  Shape shape_;
  std::vector<float> x_, y_;
  Weight weight_;
};

void run(const Options& options) {
  omp_set_num_threads(options.threads);
  ThreadPool pool(options.threads);
  for (const bool bf16 : {false, true}) {
    double mine = 0, theirs = 0, operations = 0;
    for (const Shape& shape : kShapes) {
      Ours a(pool, options.rows, shape, bf16 ? QuantFormat::kBF16 : QuantFormat::kF32);
      OneDnn b(options.rows, shape, bf16 ? OneDnn::Type::bf16 : OneDnn::Type::f32);
      double best_a = 1e30, best_b = 1e30;
      for (int i = 0; i < options.rounds; ++i) {
        best_a = std::min(best_a, seconds_alone([&] { a.run(); }));
        best_b = std::min(best_b, seconds_alone([&] { b.run(); }));
      }
      const double flops = 2.0 * static_cast<double>(options.rows * shape.rows * shape.cols);
      std::printf(
          "{\"name\": \"prefill_product/%s/%s/%lld\", \"value\": %.1f, \"unit\": \"GFLOP/s\", "
          "\"baseline\": \"%.1f of oneDNN (%s)\", \"ratio\": %.3f}\n",
          bf16 ? "bf16" : "f32", shape.name, static_cast<long long>(options.rows),
          flops / best_a / 1e9, flops / best_b / 1e9, b.implementation.c_str(), best_b / best_a);
      std::fflush(stdout);
      mine += best_a;
      theirs += best_b;
      operations += flops;
    }
    std::printf(
        "{\"name\": \"prefill_product/%s/layer/%lld\", \"value\": %.1f, \"unit\": \"GFLOP/s\", "
        "\"baseline\": \"%.1f of oneDNN\", \"ratio\": %.3f}\n",
        bf16 ? "bf16" : "f32", static_cast<long long>(options.rows), operations / mine / 1e9,
        operations / theirs / 1e9, theirs / mine);
  }
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (i + 1 < argc && arg == "--threads") {
      options.threads = std::atoi(argv[++i]);
    } else if (i + 1 < argc && arg == "--rows") {
      options.rows = std::atoi(argv[++i]);
    } else if (i + 1 < argc && arg == "--rounds") {
      options.rounds = std::atoi(argv[++i]);
    } else {
      fail(ErrorCode::kInvalidArgument, "unknown argument '{}'", arg);
    }
  }
  if (options.threads < 1 || options.rows < 1 || options.rounds < 1) {
    fail(ErrorCode::kInvalidArgument, "threads, rows and rounds are at least 1");
  }
  return options;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  try {
    trireme::run(trireme::parse(argc, argv));
  } catch (const trireme::Error& error) {
    std::fprintf(stderr, "onednn_bench: %s\n", error.what());
    return trireme::exit_code(error.code());
  } catch (const dnnl::error& error) {
    std::fprintf(stderr, "onednn_bench: oneDNN: %s\n", error.message);
    return 1;
  }
  return 0;
}
