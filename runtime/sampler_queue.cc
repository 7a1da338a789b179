// Tokens that are chosen on the device while the host goes on.
#include "base/error.h"
#include "runtime/sampler_state.h"

namespace trireme {

size_t Sampler::most_queued() const {
  LogitChooser* chooser = state_->logits->chooser();
  return chooser == nullptr ? 0 : chooser->most_choices(state_->tp.size());
}

bool Sampler::can_queue(std::span<const SampleRow> rows) const {
  if (rows.empty() || rows.size() > most_queued()) return false;
  return std::all_of(rows.begin(), rows.end(), [](const SampleRow& row) {
    return row.params != nullptr && row.params->logprobs < 0;
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
    LogitChoice choice;
    choice.row = work.index;
    choice.slot = slots[i];
    choice.draws = work.path != SamplerPath::kGreedy;
    if (choice.draws) {
      const SamplingParams& params = *rows[i].params;
      choice.draw = work.draw;
      choice.top_k = cuts_by_k(params, state.vocab_size) ? params.top_k : 0;
      choice.top_p = std::min(params.top_p, 1.0f);
      choice.inverse_temperature = inverse_for_mass(work.draw);
    }
    state.choices.push_back(choice);
  }
  return state.logits->chooser()->choose(state.choices);
}

bool Sampler::done(uint64_t number) const { return state_->logits->chooser()->done(number); }

void Sampler::take(uint64_t number, std::vector<int32_t>& tokens) {
  state_->logits->chooser()->take(number, tokens);
}

}  // namespace trireme
