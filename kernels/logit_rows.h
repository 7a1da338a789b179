// Rows of logits of one rank's part of the vocabulary, as the sampler sees them: adjusted once,
// then questions, all that are open at a time in one call, so that a GPU answers them with a few
// launches and one wait. All tokens here carry global ids. No collective happens here.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "base/matrix_view.h"
#include "kernels/sampling_math.h"

namespace trireme {

// How often a token occurs in a sequence.
struct TokenCount {
  int32_t token = 0;
  int32_t total = 0;  // prompt and generated
  int32_t generated = 0;
};

// What changes a row's logits before a token is chosen, in the order of the members. Ids of other
// ranks' parts are skipped. Views of the caller's.
struct LogitAdjustment {
  int32_t row = 0;
  std::span<const int32_t> allowed;  // empty: all
  std::span<const int32_t> banned;
  std::span<const std::pair<int32_t, float>> bias;  // added
  std::span<const TokenCount> counts;               // each token once
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  // >= 0: the token that LogitChooser chose for this slot last is counted besides, as generated.
  int32_t newest_slot = -1;
  std::span<const int32_t> stop;  // banned as well
};

struct LogitQuestion {
  enum class Kind : uint8_t {
    kBest,          // -> best; token -1 where no logit is above -inf
    kMass,          // max, inverse_temperature -> mass: sum of mass_of()
    kDraw,          // draw -> drawn: Gumbel-max over the tokens that `draw` keeps
    kBucketMasses,  // max, inverse_temperature, within -> masses[kMassBuckets], added
    kBucket,        // which, and as before -> list: its tokens above -inf, in no order; after
                    // kBucketMasses of the same
    kTop,           // count -> list: the best above -inf, in order, fewer where there are fewer;
                    // left_out: there are more. After kBest.
    kRaw            // token, of this part -> raw: its logit before adjust()
  };
  Kind kind = Kind::kBest;
  int32_t row = 0;
  float max = 0.0f;
  float inverse_temperature = 1.0f;
  int64_t count = 0;
  int32_t within = -1;  // >= 0: the parts of this bucket are meant; see splits_buckets()
  int32_t which = 0;
  int32_t token = -1;
  Draw draw;
  std::vector<Candidate>* list = nullptr;
  std::span<int64_t> masses;

  Candidate best;
  Scored drawn;
  int64_t mass = 0;
  float raw = 0.0f;
  bool left_out = false;
};

// A token to be chosen where the logits are: the best (ties to the lowest id) or, by a draw, the
// winner of Gumbel-max over the best top_k tokens, of these those that top_p keeps, and of these
// those that draw.log_min_p keeps; over the parts of all ranks. draw.max and draw.worst are found.
struct LogitChoice {
  int32_t row = 0;
  int32_t slot = 0;  // whose newest token it becomes
  bool draws = false;
  Draw draw;
  int32_t top_k = 0;                 // 0: all
  float top_p = 1.0f;                // 1: all
  float inverse_temperature = 1.0f;  // for the masses that top_p is a share of

  // Whether it needs more than one look at the row.
  bool is_cut() const {
    return draws &&
           (top_k > 0 || top_p < 1.0f || draw.log_min_p > -std::numeric_limits<double>::infinity());
  }
};

class LogitChooser {
 public:
  virtual ~LogitChooser() = default;
  // The most choices of one choose() over `ranks` parts of the vocabulary; 0: it cannot.
  virtual size_t most_choices(int ranks) const = 0;
  // Queues the choices from the rows that are attached, at most once for each attach(), in the same
  // order on all ranks. A following step knows their tokens (StepInputs::token_slots), the host
  // later. Returns a number for take(); at most kInFlight are not taken at a time.
  virtual uint64_t choose(std::span<const LogitChoice> choices) = 0;
  // Whether choose() number `number` is done.
  virtual bool done(uint64_t number) = 0;
  // Its tokens, once it is done; -1 where no logit is above -inf.
  virtual void take(uint64_t number, std::vector<int32_t>& tokens) = 0;

  static constexpr int kInFlight = 4;
};

class LogitRows {
 public:
  virtual ~LogitRows() = default;
  // logits [rows, part of the vocabulary] f32 may be modified and must live as long as they are
  // asked about. NaN counts as -inf, +inf as the largest finite number.
  virtual void attach(MatrixView logits, int64_t vocab_begin) = 0;
  // At most once after attach(), each row at most once.
  virtual void adjust(std::span<const LogitAdjustment> adjustments) = 0;
  virtual void answer(std::span<LogitQuestion> questions) = 0;
  // Whether a bucket's 256 parts may be asked about, as it is cheaper than to list many tokens.
  virtual bool splits_buckets() const = 0;

  // Null where choosing would have to wait.
  virtual LogitChooser* chooser() { return nullptr; }
};

}  // namespace trireme
