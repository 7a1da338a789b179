// The vector type comes first: the rest is written in terms of it.
#include "kernels/cpu/simd/vec_avx512.h"

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
    case QuantFormat::kF8x128: return linear_plain_avx512(format);
    default: return linear_int8_avx512(format);
  }
}

double flops(int64_t repeats, TileKind tile) {
  return tile == TileKind::kF32 ? fma_operations(repeats) : int8_operations(repeats);
}

constexpr Ops kOps = {"avx512-vnni", rms_norm,    add,     silu_mul,
                      gelu_tanh_mul, rotate,      convert, quantize_avx512,
                      tile_f32,      nullptr,     linear,  attend_avx512,
                      blend,         read_stream, flops};

LinearKernel linear_or_dots(QuantFormat format) {
  return format == QuantFormat::kBF16 ? linear_bf16_avx512() : linear(format);
}

double flops_or_dots(int64_t repeats, TileKind tile) {
  return tile == TileKind::kBF16 ? bf16_operations_avx512(repeats) : flops(repeats, tile);
}

constexpr Ops with_dots(Ops ops) {
  ops.name = "avx512-bf16";
  ops.tile_bf16 = tile_bf16_avx512;
  ops.linear = linear_or_dots;
  ops.flops = flops_or_dots;
  return ops;
}
constexpr Ops kBf16Ops = with_dots(kOps);

}  // namespace

const Ops& avx512_bf16_ops() { return kBf16Ops; }
const Ops& avx512_ops() { return kOps; }

}  // namespace trireme::cpu
