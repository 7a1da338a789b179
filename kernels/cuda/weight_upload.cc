#include "kernels/cuda/weight_upload.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/element.h"

namespace trireme::cuda {
namespace {

constexpr QuantFormat kOwnFormat = kElementIsF16 ? QuantFormat::kF16 : QuantFormat::kBF16;

// The slice's own columns of one row, as elements.
void convert_row(const WeightSlice& slice, int64_t row, std::vector<float>& values, uint16_t* to) {
  thread_local std::vector<std::byte> scratch;
  scratch.resize(static_cast<size_t>(row_bytes(slice.format, slice.cols)));
  const std::byte* from = slice.row(row, scratch.data());
  if (slice.format == kOwnFormat) {
    std::memcpy(to, from + slice.col_begin * 2, static_cast<size_t>(slice.col_count) * 2);
    return;
  }
  values.resize(static_cast<size_t>(slice.cols));
  dequantize(slice.format, from, slice.cols, values.data());
  if (!slice.order.empty()) {  // columns go back to the order of x
    std::vector<float> ordered(static_cast<size_t>(slice.col_count));
    for (size_t j = 0; j < slice.order.size(); ++j) {
      if (slice.order[j] >= 0) ordered[static_cast<size_t>(slice.order[j])] = values[j];
    }
    values.swap(ordered);
  }
  for (int64_t i = 0; i < slice.col_count; ++i) {
    const float value = values[static_cast<size_t>(slice.col_begin + i)];
    to[i] = element_bits(value);
    if (kElementIsF16 && (to[i] & 0x7fffu) == 0x7c00u && std::isfinite(value)) {
      fail(ErrorCode::kInvalidArgument,
           "dtype: f16 cannot hold a weight of {} (row {} of a matrix [{}, {}]); bf16 can", value,
           row, slice.rows, slice.cols);
    }
  }
}

}  // namespace

WeightUpload::WeightUpload(ThreadPool& pool, cudaStream_t stream) : pool_(pool), stream_(stream) {
  for (Staging& staging : staging_) {
    TRIREME_CUDA(cudaMallocHost(reinterpret_cast<void**>(&staging.data), kStagingBytes));
    TRIREME_CUDA(cudaEventCreateWithFlags(&staging.done, cudaEventDisableTiming));
  }
}

WeightUpload::~WeightUpload() {
  cudaStreamSynchronize(stream_);
  for (Staging& staging : staging_) {
    cudaEventDestroy(staging.done);
    cudaFreeHost(staging.data);
  }
}

void WeightUpload::run(const WeightSlice& slice, std::byte* to) {
  const auto row_size = static_cast<size_t>(slice.col_count) * 2;
  const auto rows_at_once = static_cast<int64_t>(kStagingBytes / row_size);
  if (rows_at_once == 0) {
    fail(ErrorCode::kUnimplemented, "a weight's row of {} columns is too long to load",
         slice.col_count);
  }
  for (int64_t begin = 0; begin < slice.rows; begin += rows_at_once) {
    const int64_t count = std::min(rows_at_once, slice.rows - begin);
    Staging& staging = staging_[turn_];
    turn_ = (turn_ + 1) % staging_.size();
    TRIREME_CUDA(cudaEventSynchronize(staging.done));
    const auto body = [&](int thread) {
      const Range range = split_range(count, thread, pool_.size());
      std::vector<float> values;
      for (int64_t row = range.begin; row < range.end; ++row) {
        convert_row(
            slice, begin + row, values,
            reinterpret_cast<uint16_t*>(staging.data + static_cast<size_t>(row) * row_size));
      }
    };
    pool_.run(body);
    const size_t bytes = static_cast<size_t>(count) * row_size;
    TRIREME_CUDA(cudaMemcpyAsync(to + static_cast<size_t>(begin) * row_size, staging.data, bytes,
                                 cudaMemcpyHostToDevice, stream_));
    TRIREME_CUDA(cudaEventRecord(staging.done, stream_));
  }
}

void WeightUpload::finish() { TRIREME_CUDA(cudaStreamSynchronize(stream_)); }

}  // namespace trireme::cuda
