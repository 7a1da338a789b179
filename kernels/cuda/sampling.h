// Questions about rows of logits (kernels/logit_rows.h) on the GPU. Logits are float32
// [rows, vocab], `stride` apart; tokens are local indices in lists and global ids in answers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/peer_lanes.h"
#include "kernels/sampling_math.h"

namespace trireme::cuda {

// One question, in device memory.
struct LogitTask {
  enum Kind : int32_t { kBest, kMass, kDraw, kBucketMasses, kBucket, kTop, kRaw };
  Draw draw;
  int32_t row = 0;
  int32_t kind = kBest;
  float max = 0.0f;
  float inverse_temperature = 1.0f;
  int32_t count = 0;    // kTop: wanted; kBucket: room in the list; kRaw: entries of the row
  int32_t which = 0;    // kBucket: the bucket; kRaw: the local index
  int32_t within = -1;  // kBucketMasses, kBucket: >= 0: the parts of this bucket are meant
  int32_t slot = -1;    // launch_choose: the place for the chosen token
  int32_t place = 0;    // kBucketMasses: of its sums; kRaw: the row's first entry
  int64_t list = 0;     // kTop, kBucket: the first place in the lists
};

struct LogitAnswer {
  // kBest: the logit, kDraw: the score, as double; kMass: the mass, as int64. kTop: kTopLeftOut,
  // kTopUnsorted.
  int64_t value = 0;
  float logit = 0.0f;  // kBest; kRaw
  int32_t token = -1;  // kBest, kDraw; kTop, kBucket: candidates in the list
};
inline constexpr int64_t kTopLeftOut = 1;
inline constexpr int64_t kTopUnsorted = 2;  // the right ones, in no order

struct DeviceLogits {
  float* logits = nullptr;
  int64_t stride = 0;
  int32_t vocab = 0;
  int32_t vocab_begin = 0;
  float* group_max = nullptr;  // [rows, logit_groups(vocab)]: written by kBest, used by kTop
};

// Blocks that share a row: each looks at 4096 logits, in groups of 64 that have a maximum.
constexpr int32_t logit_parts(int64_t vocab) { return static_cast<int32_t>((vocab + 4095) / 4096); }
constexpr int32_t logit_groups(int64_t vocab) { return logit_parts(vocab) * 64; }

// What blocks leave for the one of their row that finishes last.
struct LogitScanScratch {
  LogitAnswer* partial = nullptr;  // [tasks, logit_parts(vocab)]
  uint32_t* arrivals = nullptr;    // [tasks], zero before the first launch, and after each
};

// answers[i] of tasks[i], kBest, kMass or (only where `draws`) kDraw, in one pass over the rows.
void launch_logit_scan(const DeviceLogits& rows, const LogitTask* tasks, int32_t count, bool draws,
                       const LogitScanScratch& scratch, LogitAnswer* answers, cudaStream_t stream);

// What the host learns of choices: in page-locked memory, written by the device.
struct ChosenTokens {
  static constexpr int kMost = 256;
  int32_t tokens[kMost] = {};
  uint64_t number = 0;  // of the choices whose tokens these are; written last
};

// Of each task (kBest or kDraw) the best of all ranks' answers: its token to newest[slot] (0 where
// there is none: an embedding that follows on the stream reads it) and to chosen->tokens.
struct ChooseTokens {
  PeerLanes lanes;  // of size 1: this rank's answers alone
  const LogitTask* tasks = nullptr;
  const LogitAnswer* answers = nullptr;
  int32_t count = 0;  // at most ChosenTokens::kMost
  int32_t* newest = nullptr;
  ChosenTokens* chosen = nullptr;
  uint64_t number = 0;
};
void launch_choose(const ChooseTokens& choose, cudaStream_t stream);

// Which tokens a choice draws from: the best top_k, of these those that top_p keeps. The rest is
// the device's, which also finds the maximum that min_p is a part of.
struct alignas(16) Cut {
  int32_t row = 0;
  int32_t choice = 0;  // index of the task whose draw.max and draw.worst are found
  int32_t top_k = 0;   // 0: all
  float top_p = 1.0f;  // 1: all
  float inverse_temperature = 1.0f;
  uint32_t max = 0;      // as ordered(); 0: no logit above -inf
  int32_t round = 0;     // which narrows it next: 0, 1 (top_p after top_k) or kCutDone
  int32_t by_count = 0;  // wanted_count tokens are wanted; else wanted_mass
  int32_t wanted_count = 0;
  int32_t bucket = 0;        // where that is reached,
  int32_t part = 0;          // in which part of the bucket,
  int32_t part_count = 0;    // how many tokens are in it
  int32_t listed = 0;        // and of these on this rank in the list;
  int32_t before_count = 0;  // tokens that are better than all of them,
  int64_t before_mass = 0;   // and their mass
  double wanted_mass = 0.0;
};
inline constexpr int32_t kCutDone = 2;
inline constexpr int32_t kCutRoom = 256;  // tokens of a list
inline constexpr int32_t kCutLevels = 3;  // buckets, and the parts of one in each round

struct CutBin {
  unsigned long long mass = 0;
  uint32_t count = 0;
};
constexpr size_t cut_bins_bytes(int32_t cuts) {
  return sizeof(CutBin) * static_cast<size_t>(cuts) * kCutLevels * kMassBuckets;
}

constexpr size_t cut_lists_bytes(int32_t cuts) {
  return sizeof(Candidate) * static_cast<size_t>(cuts) * kCutRoom;
}

struct LaunchCuts {
  PeerLanes lanes;  // of size 1: this rank's logits are all there are
  DeviceLogits rows;
  LogitTask* tasks = nullptr;  // kDraw
  Cut* cuts = nullptr;         // [count], at most ChosenTokens::kMost
  int32_t count = 0;
  int32_t rounds = 0;          // 0: min_p alone; 2: with top_k and top_p in one cut
  CutBin* bins = nullptr;      // [count, kCutLevels, kMassBuckets]
  Candidate* lists = nullptr;  // [count, kCutRoom]
};
void launch_cuts(const LaunchCuts& args, cudaStream_t stream);

// Before the first launch where there are several ranks: see load_kernel.h.
void load_cuts(int ranks);
void load_choose(int ranks);
void load_logit_scan();
void load_adjust();

// kBucketMasses: masses and token counts [places, kMassBuckets], added to.
void launch_bucket_masses(const DeviceLogits& rows, const LogitTask* tasks, int32_t count,
                          int64_t* masses, int32_t* counts, cudaStream_t stream);

// kBucket: to lists; answers[i].token, zero before, counts.
void launch_bucket(const DeviceLogits& rows, const LogitTask* tasks, int32_t count,
                   Candidate* lists, LogitAnswer* answers, cudaStream_t stream);

// kTop: to lists; needs the rows' group_max.
void launch_logit_top(const DeviceLogits& rows, const LogitTask* tasks, int32_t count,
                      Candidate* lists, LogitAnswer* answers, cudaStream_t stream);

// One token of an adjustment. The entries of a row stand together: allowed, banned, bias (equal
// tokens adjacent, in their order), counts, stop.
struct AdjustEntry {
  int32_t index = 0;  // local
  float bias = 0.0f;
  int32_t generated = 0;
};
struct AdjustRow {
  int32_t row = 0;
  int32_t restricts = 0;  // only `allowed` is left, even if that is none of this part
  int32_t allowed = 0;    // first entries of each kind
  int32_t banned = 0;
  int32_t bias = 0;
  int32_t counts = 0;
  int32_t stop = 0;
  int32_t end = 0;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t newest_slot = -1;  // >= 0: newest[newest_slot], a global id, is counted once more
};

// raw[entry]: the logit before; not of a newest token that has no entry.
void launch_adjust(const DeviceLogits& rows, const AdjustRow* adjusted, int32_t count,
                   const AdjustEntry* entries, const int32_t* newest, float* raw,
                   cudaStream_t stream);

// kRaw: answers[i].logit.
void launch_raw(const DeviceLogits& rows, const LogitTask* tasks, int32_t count,
                const AdjustEntry* entries, const float* raw, LogitAnswer* answers,
                cudaStream_t stream);

}  // namespace trireme::cuda
