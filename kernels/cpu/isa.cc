#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "kernels/cpu/isa.h"

namespace trireme {
namespace cpu {

bool machine_has(CpuIsa isa) {
#if defined(TRIREME_SIMD)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == CpuIsa::kAvx2) return avx2;
  if (isa == CpuIsa::kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
  }
  if (isa == CpuIsa::kAvx512Bf16) {
    return machine_has(CpuIsa::kAvx512) && __builtin_cpu_supports("avx512bf16");
  }
#endif
  return isa == CpuIsa::kReference;
}

const Ops& ops_of(CpuIsa isa) {
  if (!machine_has(isa)) {
    fail(ErrorCode::kInvalidArgument, "this machine's processor lacks {}", to_string(isa));
  }
#if defined(TRIREME_SIMD)
  if (isa == CpuIsa::kAvx512Bf16) return avx512_bf16_ops();
  if (isa == CpuIsa::kAvx512) return avx512_ops();
  if (isa == CpuIsa::kAvx2) return avx2_ops();
#endif
  return reference_ops();
}

bool fetches_ahead() {
  const char* name = std::getenv("TRIREME_CPU_PREFETCH");
  if (name != nullptr && *name != '\0') {
    const std::string_view asked = name;
    if (asked != "0" && asked != "1") {
      fail(ErrorCode::kInvalidArgument, "TRIREME_CPU_PREFETCH: '{}' is not 0 or 1", asked);
    }
    return asked == "1";
  }
#if defined(TRIREME_SIMD)
  __builtin_cpu_init();
  return !(__builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f"));
#else
  return true;
#endif
}

namespace {

// Where vdpbf16ps does more in a second than float32 multiply-adds: on AMD's (Zen 4: twice as
// much), not on the Intel processors that were measured (Emerald Rapids).
bool has_fast_bf16() {
#if defined(TRIREME_SIMD)
  return machine_has(CpuIsa::kAvx512Bf16) && __builtin_cpu_is("amd");
#else
  return false;
#endif
}

}  // namespace
}  // namespace cpu

const char* to_string(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kReference: return "reference";
    case CpuIsa::kAvx2: return "avx2";
    case CpuIsa::kAvx512: return "avx512";
    case CpuIsa::kAvx512Bf16: return "avx512-bf16";
  }
  return "?";
}

std::optional<CpuIsa> cpu_isa_of(std::string_view name) {
  for (const CpuIsa isa : kCpuIsas) {
    if (name == to_string(isa)) return isa;
  }
  return std::nullopt;
}

CpuIsa best_cpu_isa() {
  CpuIsa best = CpuIsa::kReference;
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (cpu::machine_has(isa)) best = isa;
  }
  if (cpu::has_fast_bf16()) best = CpuIsa::kAvx512Bf16;
  const char* name = std::getenv("TRIREME_CPU_ISA");
  if (name == nullptr || *name == '\0') return best;
  const auto asked = cpu_isa_of(name);
  if (!asked) {
    fail(ErrorCode::kInvalidArgument,
         "TRIREME_CPU_ISA: '{}' is not reference, avx2, avx512 or avx512-bf16", name);
  }
  if (!cpu::machine_has(*asked)) {
    fail(ErrorCode::kInvalidArgument, "TRIREME_CPU_ISA: this machine has no {}", name);
  }
  return *asked;
}

}  // namespace trireme
