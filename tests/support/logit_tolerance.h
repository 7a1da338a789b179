// How far a fixture's logits may be from the float32 reference.
#pragma once

#include "kernels/backend.h"
#include "tests/support/model_fixture.h"

namespace trireme {

// Whether products of this fixture round activations to bf16 on this set (docs/adr/0021). Of
// weights that safetensors' schemes pack, all but the linear layers are bf16: the head.
inline bool rounds_to_bf16(const FixtureEntry& entry, CpuIsa isa) {
  const bool bf16 =
      entry.dtype == "bf16" || (entry.quantized() && !entry.name.starts_with("gguf-"));
  return bf16 && isa == CpuIsa::kAvx512Bf16;
}

// Whether what is rounded decides between experts here and there: where a router's scores are
// close, another expert is chosen, and a row then differs by as much as experts do. The bounds hold
// for most rows of such a fixture, not for all.
inline bool rounds_before_router(const FixtureEntry& entry, CpuIsa isa) {
  return entry.experts > 0 && !entry.quantized() && rounds_to_bf16(entry, isa);
}

// Relative L2 distance of a row of logits. Float weights (f16 and bf16 are exact in float32) leave
// only the order of sums. Quantized weights are multiplied with activations of limited precision,
// and a router turns what they differ by into weights of its experts. An activation that is rounded
// to bf16 changes by up to 2^-8, of which every product has one more: the head, and in layers of
// bf16 four more, each behind the last (qkv, output, gate and up, down).
inline double logit_tolerance(const FixtureEntry& entry, CpuIsa isa) {
  const double sums = !entry.quantized() ? 2e-5 : entry.experts > 0 ? 2e-3 : 1e-3;
  if (!rounds_to_bf16(entry, isa)) return sums;
  return sums + 0x1p-8 * (entry.quantized() ? 1 : 1 + 4 * entry.layers);
}

}  // namespace trireme
