// clang-format off: the vector type first
#include "kernels/cpu/simd/attention.h"
#include "kernels/cpu/simd/vec_avx2.h"
// clang-format on
#include "kernels/cpu/simd/tables.h"

namespace trireme::cpu {

void attend_avx2(const AttentionTile& tile) { attend(tile); }

}  // namespace trireme::cpu
