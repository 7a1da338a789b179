// The GPU's physical limits, measured: what speed is judged by.
#pragma once

#include <cuda_runtime_api.h>

namespace trireme::cuda {

// Bytes/s that a kernel which only reads takes from device memory (best of a few passes over up to
// 4 GiB of what is free).
double measure_read_bandwidth(cudaStream_t stream);

}  // namespace trireme::cuda
