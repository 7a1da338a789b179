#include "runtime/sampler_work.h"

namespace trireme {

int64_t kept_prefix(const SamplerWork& work, const CandidateCertainty& certainty, int64_t vocab) {
  const SamplingParams& params = *work.row->params;
  const auto& merged = work.merged;
  const size_t known = certainty.known(merged);
  const bool by_k = cuts_by_k(params, vocab);
  const size_t limit = by_k ? std::min(static_cast<size_t>(params.top_k), known) : known;
  const bool whole = certainty.complete || (by_k && known >= static_cast<size_t>(params.top_k));
  const bool by_p = params.top_p < 1.0f;
  double needed = 0.0;
  if (by_p) {
    int64_t mass = work.total_mass;
    if (by_k) {
      if (!whole) return -1;
      mass = 0;
      for (size_t i = 0; i < limit; ++i) {
        mass += mass_of(merged[i].logit, merged[0].logit, inverse_for_mass(work.draw));
      }
    }
    needed = static_cast<double>(params.top_p) * static_cast<double>(mass);
  }
  int64_t before = 0;
  for (size_t i = 0; i < limit; ++i) {
    if (i > 0 && by_p && static_cast<double>(before) >= needed) return static_cast<int64_t>(i);
    if (i > 0 && !work.draw.keeps(merged[i].logit)) return static_cast<int64_t>(i);
    if (by_p) before += mass_of(merged[i].logit, merged[0].logit, inverse_for_mass(work.draw));
  }
  const bool reached = by_p && !by_k && static_cast<double>(before) >= needed && limit > 0;
  return whole || reached ? static_cast<int64_t>(limit) : -1;
}

}  // namespace trireme
