// Where a prefill is cut in two, so that one part's sums over the tensor ranks run beside the other
// part's products. Two smaller products take longer than one, and sums take multiprocessors from
// them, so what pays is measured (tune_prefill_parts in runtime/warm_up.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

class PrefillParts {
 public:
  // From so many tokens on: the share of the first part, in eighths of the tokens; 0: not cut.
  struct Choice {
    int64_t tokens = 0;
    int eighths = 0;
    double whole = 0, cut = 0;  // seconds that were measured, of a few layers; 0: not measured
  };

  // Nothing is cut.
  PrefillParts() = default;
  // By rising tokens.
  explicit PrefillParts(std::vector<Choice> choices)
      : choices_(std::move(choices)), decided_(true) {}
  // TRIREME_PREFILL_PARTS: auto (or nothing) is open to measurement, off cuts nothing, on cuts
  // everything in the middle. Another value throws kInvalidArgument.
  static PrefillParts from_environment();

  bool decided() const { return decided_; }
  // Tokens of the first part; 0: not cut.
  int64_t cut(int64_t tokens) const;
  // A line for each choice, for the log.
  std::vector<std::string> describe() const;

 private:
  std::vector<Choice> choices_;
  bool decided_ = false;
};

}  // namespace trireme
