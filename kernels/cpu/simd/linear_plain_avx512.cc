// The vector type comes first: the rest is written in terms of it.
#include "kernels/cpu/simd/vec_avx512.h"

#include "kernels/cpu/simd/linear_plain.h"
#include "kernels/cpu/simd/tables.h"

namespace trireme::cpu {

LinearKernel linear_plain_avx512(QuantFormat format) { return plain_kernel(format); }

}  // namespace trireme::cpu
