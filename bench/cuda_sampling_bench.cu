// The sampling kernels alone (what look-ahead steps pay) against reading the logits once at the read
// bandwidth measured in the run. One JSON object a line. Logits of more rows than fit the L2 cache
// come from memory, as they do after the head's product; fewer are found there.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/limits.h"
#include "kernels/cuda/sampling.h"

namespace trireme::cuda {
namespace {

constexpr int32_t kVocab = 128256;
constexpr int32_t kMostRows = 256;

// About a normal distribution of this spread.
__global__ void fill(float* to, int64_t count, float spread) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  float sum = 0.0f;
  for (int i = 0; i < 6; ++i) {
    sum += static_cast<float>(mix64(static_cast<uint64_t>(at) * 8 + i) >> 40) * 0x1p-24f - 0.5f;
  }
  to[at] = sum * 1.4142f * spread;
}

template <typename T>
T* device(size_t count) {
  void* memory = nullptr;
  TRIREME_CUDA(cudaMalloc(&memory, count * sizeof(T)));
  TRIREME_CUDA(cudaMemset(memory, 0, count * sizeof(T)));
  return static_cast<T*>(memory);
}

template <typename Run>
double microseconds(cudaStream_t stream, const Run& run) {
  cudaEvent_t begin = nullptr, end = nullptr;
  TRIREME_CUDA(cudaEventCreate(&begin));
  TRIREME_CUDA(cudaEventCreate(&end));
  constexpr int kCalls = 20;
  float best = 1e30f;
  for (int pass = 0; pass < 6; ++pass) {
    TRIREME_CUDA(cudaEventRecord(begin, stream));
    for (int i = 0; i < kCalls; ++i) run();
    TRIREME_CUDA(cudaEventRecord(end, stream));
    TRIREME_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    TRIREME_CUDA(cudaEventElapsedTime(&ms, begin, end));
    best = std::min(best, ms);
  }
  TRIREME_CUDA(cudaEventDestroy(begin));
  TRIREME_CUDA(cudaEventDestroy(end));
  return static_cast<double>(best) * 1e3 / kCalls;
}

void print(const std::string& name, int32_t count, double us, double bandwidth) {
  const double limit = static_cast<double>(count) * kVocab * 4 / bandwidth * 1e6;
  std::printf(
      "{\"name\": \"sampling_kernel_%s_rows%d\", \"value\": %.2f, \"unit\": \"us\", "
      "\"baseline\": %.2f, \"ratio\": %.3f}\n",
      name.c_str(), count, us, limit, us / limit);
}

// Cuts by top_k and top_p as choose() queues them, without the draw that follows.
void run_cuts(const DeviceLogits& rows, LogitTask* tasks, double bandwidth, cudaStream_t stream) {
  struct Shape {
    const char* name;
    int32_t top_k;
    float top_p;
    float spread;
  };
  const Shape shapes[] = {{"min_p", 0, 1.0f, 3},         {"top_p", 0, 0.9f, 3},
                          {"top_p_flat", 0, 0.9f, 0.5f}, {"top_k", 40, 1.0f, 3},
                          {"top_k_top_p", 40, 0.9f, 3},  {"top_p_ties", 0, 0.9f, 0}};
  auto* cuts = device<Cut>(kMostRows);
  LaunchCuts args;
  args.rows = rows;
  args.tasks = tasks;
  args.cuts = device<Cut>(kMostRows);
  args.bins = reinterpret_cast<CutBin*>(device<std::byte>(cut_bins_bytes(kMostRows)));
  args.lists = reinterpret_cast<Candidate*>(device<std::byte>(cut_lists_bytes(kMostRows)));
  for (const Shape& shape : shapes) {
    fill<<<kMostRows * kVocab / 256, 256, 0, stream>>>(rows.logits, int64_t{kMostRows} * kVocab,
                                                       shape.spread);
    std::vector<Cut> list(kMostRows);
    for (int32_t i = 0; i < kMostRows; ++i) {
      list[i].row = list[i].choice = i;
      list[i].top_k = shape.top_k;
      list[i].top_p = shape.top_p;
      list[i].inverse_temperature = 1.25f;
    }
    TRIREME_CUDA(cudaMemcpyAsync(cuts, list.data(), list.size() * sizeof(Cut),
                                 cudaMemcpyHostToDevice, stream));
    TRIREME_CUDA(cudaStreamSynchronize(stream));
    args.rounds = (shape.top_k > 0 ? 1 : 0) + (shape.top_p < 1.0f ? 1 : 0);
    for (const int32_t count : {1, 64, 256}) {
      args.count = count;
      const double us = microseconds(stream, [&] {
        TRIREME_CUDA(cudaMemcpyAsync(args.cuts, cuts, static_cast<size_t>(count) * sizeof(Cut),
                                     cudaMemcpyDeviceToDevice, stream));
        launch_cuts(args, stream);
      });
      print("cut_" + std::string(shape.name), count, us, bandwidth);
    }
  }
}

void run() {
  cudaStream_t stream = nullptr;
  TRIREME_CUDA(cudaStreamCreate(&stream));
  const double bandwidth = measure_read_bandwidth(stream);
  const size_t groups = static_cast<size_t>(logit_groups(kVocab)) * kMostRows;
  DeviceLogits rows{device<float>(size_t{kMostRows} * kVocab), kVocab, kVocab, 0,
                    device<float>(groups)};
  auto* tasks = device<LogitTask>(kMostRows);
  auto* answers = device<LogitAnswer>(kMostRows);
  auto* lists = device<Candidate>(size_t{kMostRows} * kVocab);
  auto* masses = device<int64_t>(size_t{kMostRows} * kMassBuckets);
  auto* counts = device<int32_t>(size_t{kMostRows} * kMassBuckets);
  const LogitScanScratch scratch{device<LogitAnswer>(groups), device<uint32_t>(kMostRows)};
  struct Shape {
    const char* name;
    LogitTask::Kind kind;
    float spread;
    int32_t wanted;
  };
  const Shape shapes[] = {
      {"greedy", LogitTask::kBest, 3, 0},         {"draw", LogitTask::kDraw, 3, 0},
      {"draw_flat", LogitTask::kDraw, 0.1f, 0},   {"mass", LogitTask::kMass, 3, 0},
      {"top_40", LogitTask::kTop, 3, 40},         {"top_256", LogitTask::kTop, 3, 256},
      {"top_10000", LogitTask::kTop, 3, 10000},   {"top_ties", LogitTask::kTop, 0, 64},
      {"buckets", LogitTask::kBucketMasses, 3, 0}};
  for (const Shape& shape : shapes) {
    fill<<<kMostRows * kVocab / 256, 256, 0, stream>>>(rows.logits, int64_t{kMostRows} * kVocab,
                                                       shape.spread);
    std::vector<LogitTask> list(kMostRows);
    for (int32_t i = 0; i < kMostRows; ++i) {
      list[i].kind = LogitTask::kBest;
      list[i].row = list[i].slot = list[i].place = i;
      list[i].draw.key = mix64(i);
      list[i].draw.inverse_temperature = list[i].inverse_temperature = 1.25f;
      list[i].max = 4.2f * shape.spread;
      list[i].count = shape.wanted;
      list[i].list = int64_t{i} * kVocab;
    }
    const auto upload = [&] {
      TRIREME_CUDA(cudaMemcpyAsync(tasks, list.data(), list.size() * sizeof(LogitTask),
                                   cudaMemcpyHostToDevice, stream));
      TRIREME_CUDA(cudaStreamSynchronize(stream));
    };
    upload();
    launch_logit_scan(rows, tasks, kMostRows, false, scratch, answers, stream);
    for (LogitTask& task : list) task.kind = shape.kind;
    upload();
    for (const int32_t count : {1, 64, 256}) {
      const double us = microseconds(stream, [&] {
        if (shape.kind == LogitTask::kTop) {
          launch_logit_top(rows, tasks, count, lists, answers, stream);
        } else if (shape.kind == LogitTask::kBucketMasses) {
          launch_bucket_masses(rows, tasks, count, masses, counts, stream);
        } else {
          launch_logit_scan(rows, tasks, count, shape.kind == LogitTask::kDraw, scratch, answers,
                            stream);
        }
      });
      print(shape.name, count, us, bandwidth);
    }
  }
  run_cuts(rows, tasks, bandwidth, stream);
}

}  // namespace
}  // namespace trireme::cuda

int main() {
  trireme::cuda::run();
  return 0;
}
