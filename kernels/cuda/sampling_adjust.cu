#include "kernels/cuda/check.h"
#include "kernels/cuda/load_kernel.h"
#include "kernels/cuda/sampling.h"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 512;

__device__ float penalized(float logit, const AdjustRow& one, int32_t generated) {
  logit = logit > 0.0f ? logit / one.repetition_penalty : logit * one.repetition_penalty;
  if (generated != 0) {
    logit -= one.presence_penalty;
    logit -= one.frequency_penalty * static_cast<float>(generated);
  }
  return logit;
}

// One block a row. Legal logits are kept, and stored; then one kind of adjustment after the other.
__global__ void __launch_bounds__(kThreads)
    adjust_kernel(const DeviceLogits rows, const AdjustRow* adjusted, const AdjustEntry* entries,
                  const int32_t* newest, float* raw) {
  __shared__ bool newest_has_entry;
  const AdjustRow one = adjusted[blockIdx.x];
  float* row = rows.logits + one.row * rows.stride;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) newest_has_entry = false;
  for (int e = one.allowed + thread; e < one.end; e += kThreads) {
    raw[e] = legal_logit(row[entries[e].index]);
  }
  __syncthreads();
  if (one.restricts != 0) {
    for (int i = thread; i < rows.vocab; i += kThreads) row[i] = kNoLogit;
    __syncthreads();
  }
  const int kept = one.restricts != 0 ? one.banned : one.end;
  for (int e = one.allowed + thread; e < kept; e += kThreads) row[entries[e].index] = raw[e];
  __syncthreads();
  for (int e = one.banned + thread; e < one.bias; e += kThreads) row[entries[e].index] = kNoLogit;
  __syncthreads();
  for (int e = one.bias + thread; e < one.counts; e += kThreads) {
    const int index = entries[e].index;
    if (e > one.bias && entries[e - 1].index == index) continue;  // the first does them all
    float logit = row[index];
    for (int same = e; same < one.counts && entries[same].index == index; ++same) {
      logit += entries[same].bias;
    }
    row[index] = logit;
  }
  __syncthreads();
  // Of another rank's part, or of no slot: no entry has it.
  const int32_t latest =
      one.newest_slot < 0 ? -1 : newest[one.newest_slot] - rows.vocab_begin;
  for (int e = one.counts + thread; e < one.stop; e += kThreads) {
    const AdjustEntry entry = entries[e];
    const bool is_latest = entry.index == latest;
    if (is_latest) newest_has_entry = true;
    row[entry.index] =
        penalized(row[entry.index], one, entry.generated + (is_latest ? 1 : 0));
  }
  __syncthreads();
  if (thread == 0 && latest >= 0 && latest < rows.vocab && !newest_has_entry) {
    row[latest] = penalized(legal_logit(row[latest]), one, 1);
  }
  __syncthreads();
  for (int e = one.stop + thread; e < one.end; e += kThreads) row[entries[e].index] = kNoLogit;
}

// One warp a task.
__global__ void raw_kernel(const DeviceLogits rows, const LogitTask* tasks,
                           const AdjustEntry* entries, const float* raw, LogitAnswer* answers) {
  const LogitTask& task = tasks[blockIdx.x];
  const int lane = static_cast<int>(threadIdx.x);
  float value = 0.0f;
  unsigned found = 0;
  for (int e = 0; e < task.count && found == 0; e += 32) {
    const int at = task.place + e + lane;
    const bool here = e + lane < task.count && entries[at].index == task.which;
    if (here) value = raw[at];
    found = __ballot_sync(0xffffffffu, here);
  }
  if (lane != (found == 0 ? 0 : __ffs(static_cast<int>(found)) - 1)) return;
  if (found == 0) value = legal_logit(rows.logits[task.row * rows.stride + task.which]);
  answers[blockIdx.x] = {0, value, -1};
}

}  // namespace

void load_adjust() { load_kernel(adjust_kernel); }

void launch_adjust(const DeviceLogits& rows, const AdjustRow* adjusted, int32_t count,
                   const AdjustEntry* entries, const int32_t* newest, float* raw,
                   cudaStream_t stream) {
  if (count == 0) return;
  adjust_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(rows, adjusted, entries,
                                                                       newest, raw);
  TRIREME_CUDA(cudaGetLastError());
}

void launch_raw(const DeviceLogits& rows, const LogitTask* tasks, int32_t count,
                const AdjustEntry* entries, const float* raw, LogitAnswer* answers,
                cudaStream_t stream) {
  if (count == 0) return;
  raw_kernel<<<static_cast<unsigned>(count), 32, 0, stream>>>(rows, tasks, entries, raw, answers);
  TRIREME_CUDA(cudaGetLastError());
}

}  // namespace trireme::cuda
