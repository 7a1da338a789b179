// The vector type comes first: the rest is written in terms of it.
#include "kernels/cpu/simd/vec_avx512.h"

#include "kernels/cpu/simd/linear_plain.h"
#include "kernels/cpu/simd/tables.h"

namespace trireme::cpu {

LinearKernel linear_plain_avx512(QuantFormat format) {
  switch (format) {
    case QuantFormat::kF16: return plain_kernel<LoadF16>();
    case QuantFormat::kBF16: return plain_kernel<LoadBF16>();
    default: return plain_kernel<LoadF32>();
  }
}

}  // namespace trireme::cpu
