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
#endif
  return isa == CpuIsa::kReference;
}

const Ops& ops_of(CpuIsa isa) {
  if (!machine_has(isa)) {
    fail(ErrorCode::kInvalidArgument, "this machine's processor lacks {}", to_string(isa));
  }
#if defined(TRIREME_SIMD)
  if (isa == CpuIsa::kAvx512) return avx512_ops();
  if (isa == CpuIsa::kAvx2) return avx2_ops();
#endif
  return reference_ops();
}

}  // namespace cpu

const char* to_string(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kReference: return "reference";
    case CpuIsa::kAvx2: return "avx2";
    case CpuIsa::kAvx512: return "avx512";
  }
  return "?";
}

CpuIsa best_cpu_isa() {
  CpuIsa best = CpuIsa::kReference;
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (cpu::machine_has(isa)) best = isa;
  }
  const char* limit = std::getenv("TRIREME_CPU_ISA");
  if (limit == nullptr || *limit == '\0') return best;
  for (const CpuIsa isa : {CpuIsa::kReference, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (std::string_view(limit) == to_string(isa)) return isa < best ? isa : best;
  }
  fail(ErrorCode::kInvalidArgument, "TRIREME_CPU_ISA: '{}' is not reference, avx2 or avx512",
       limit);
}

}  // namespace trireme
