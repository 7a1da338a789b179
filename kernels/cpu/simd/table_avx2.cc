// The vector type comes first: the rest is written in terms of it.
#include "kernels/cpu/simd/vec_avx2.h"

#include "kernels/cpu/simd/elementwise.h"
#include "kernels/cpu/simd/measure.h"
#include "kernels/cpu/simd/tables.h"

namespace trireme::cpu {
namespace {

LinearKernel linear(QuantFormat format) {
  switch (format) {
    case QuantFormat::kF32:
    case QuantFormat::kF16:
    case QuantFormat::kBF16:
    case QuantFormat::kF8x32:
    case QuantFormat::kF8x128: return linear_plain_avx2(format);
    default: return linear_int8_avx2(format);
  }
}

double flops(int64_t repeats, TileKind tile) {
  return tile == TileKind::kF32 ? fma_operations(repeats) : int8_operations(repeats);
}

constexpr Ops kOps = {"avx2", rms_norm,    add,           silu_mul,    gelu_tanh_mul,
                      rotate, convert,     quantize_avx2, tile_f32,    nullptr,
                      linear, attend_avx2, blend,         read_stream, flops};

}  // namespace

const Ops& avx2_ops() { return kOps; }

}  // namespace trireme::cpu
