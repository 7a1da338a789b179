// The vector type comes first: the rest is written in terms of it.
#include "kernels/cpu/simd/vec_avx2.h"

#include "kernels/cpu/simd/attention.h"
#include "kernels/cpu/simd/tables.h"

namespace trireme::cpu {

void attend_avx2(const AttentionTile& tile) { attend(tile); }

}  // namespace trireme::cpu
