// Why a world stands still: from what rank 0 knows of every rank to the one that is to blame.
// A function of its input alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/ledger.h"

namespace trireme {

struct RankReport {
  enum class State : uint8_t {
    kAnswers,
    kSilent,  // its connection stands, but nothing came within the time
    kGone,    // its connection has closed
  };
  int32_t rank = 0;
  int32_t stage = 0, tensor = 0;
  std::string host;
  State state = State::kAnswers;
  double unheard = 0;    // s since the ledger below was written
  std::string error;     // what its step loop threw; empty: nothing
  bool passive = false;  // that error only says that another rank aborted, or did not come
  LedgerView view;
  std::vector<LedgerGroup> groups;
};

struct Verdict {
  std::vector<int32_t> culprits;   // by rank; empty: none could be told
  std::string line;                // names them: rank, host, stage, step, operation, how long
  std::vector<std::string> ranks;  // a line for each rank: what it did last
  // Two sides of a mismatch are alike, and some of the group have not come to it: ask again.
  bool open = false;
};

// `reports` by rank, all of them. `alarm` is why rank 0 asked, for when no rank can be named.
//
// In this order: who is gone; who is silent; whose plan of a step differs from rank 0's; whose
// collective differs from that of most in the group; whose device was given more or fewer
// collectives than those of most in its stage; whose step loop threw; whom the others wait
// for, directly or through each other, while it waits for nobody; who
// is in a step and in no operation; who has not begun a step that others' devices are in; who has
// come less far in a group.
Verdict diagnose(const std::vector<RankReport>& reports, const std::string& alarm);

// Names both ranks and their hashes of the first step that both know and whose plan is not the
// same; empty if there is none.
std::string plan_difference(const RankReport& root, const RankReport& other);

// The same of the collectives that the devices of two ranks of one stage were given before a step.
std::string queue_difference(const RankReport& measure, const RankReport& other);

}  // namespace trireme
