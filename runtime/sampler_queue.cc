// Tokens that are chosen on the device, in one look, while the host goes on.
#include "base/error.h"
#include "runtime/sampler_state.h"

namespace trireme {

size_t Sampler::most_queued() const {
  LogitChooser* chooser = state_->logits->chooser();
  return chooser == nullptr ? 0 : chooser->most_choices(state_->tp.size());
}

bool Sampler::can_queue(std::span<const SampleRow> rows) const {
  const State& state = *state_;
  if (rows.empty() || rows.size() > most_queued()) return false;
  return std::all_of(rows.begin(), rows.end(), [&](const SampleRow& row) {
    if (row.params == nullptr || row.params->logprobs >= 0 || row.params->needs_counts()) {
      return false;
    }
    const SamplerPath path = path_of(row.params, state.vocab_size);
    return path == SamplerPath::kGreedy || path == SamplerPath::kWhole;
  });
}

uint64_t Sampler::queue(MatrixView logits, std::span<const SampleRow> rows,
                        std::span<const int32_t> slots) {
  State& state = *state_;
  state.attach(logits, rows.size());
  state.begin(rows);
  state.adjust();
  state.choices.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    const SamplerWork& work = state.works[i];
    const bool draws = work.path == SamplerPath::kWhole;
    state.choices.push_back({work.index, slots[i], draws, draws ? work.draw : Draw{}});
  }
  return state.logits->chooser()->choose(state.choices);
}

bool Sampler::done(uint64_t number) const { return state_->logits->chooser()->done(number); }

void Sampler::take(uint64_t number, std::vector<int32_t>& tokens) {
  state_->logits->chooser()->take(number, tokens);
}

}  // namespace trireme
