// LogitRows on the GPU: a round of questions is one upload, a launch for each kind of work, one
// small copy back, and one wait.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/peer_lanes.h"
#include "kernels/cuda/sampling.h"

namespace trireme::cuda {

// The same number of bytes in page-locked memory and on the device.
class Staged {
 public:
  // Both are uninitialized after they grew. What was there before stays until the end: freeing
  // waits for the whole device, on which kernels may be waiting for other ranks.
  void reserve(size_t bytes, Backend& backend);
  std::byte* host() const { return host_.get(); }
  std::byte* device() const { return device_.data(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const { cudaFreeHost(memory); }
  };
  std::unique_ptr<std::byte, Free> host_;
  Buffer device_;
  std::vector<std::pair<std::unique_ptr<std::byte, Free>, Buffer>> outgrown_;
};

class DeviceLogitRows final : public LogitRows, public LogitChooser {
 public:
  // Of `backend`, which must outlive this: its memory, device and stream. newest [slots], on the
  // device, takes what choose() chooses; `lanes` are for choices over several ranks.
  DeviceLogitRows(Backend& backend, int device, cudaStream_t stream, int32_t* newest,
                  const PeerLanes& lanes);
  ~DeviceLogitRows() override;

  void attach(MatrixView logits, int64_t vocab_begin) override;
  void adjust(std::span<const LogitAdjustment> adjustments) override;
  void answer(std::span<LogitQuestion> questions) override;
  bool splits_buckets() const override { return true; }
  LogitChooser* chooser() override { return this; }

  size_t most_choices(int ranks) const override;
  uint64_t choose(std::span<const LogitChoice> choices) override;
  bool done(uint64_t number) override;
  void take(uint64_t number, std::vector<int32_t>& tokens) override;

 private:
  // Questions that one launch answers, in the order of their tasks.
  enum Family : uint8_t { kScan, kMasses, kBucket, kTop, kRaw, kFamilies };
  static Family family_of(LogitQuestion::Kind kind);
  // Where a round's results lie, from the first byte.
  struct Layout {
    size_t masses = 0, counts = 0, lists = 0, end = 0;
    bool draws = false;
    std::array<int32_t, kFamilies + 1> first{};  // task of each family
  };
  Layout plan(std::span<const LogitQuestion> questions);
  LogitTask task_of(const LogitQuestion& question) const;
  void launch(const Layout& layout, int32_t count);
  void deliver(LogitQuestion& question, const LogitTask& task, const LogitAnswer& answer,
               const Layout& layout);
  void reserve(Buffer& buffer, size_t bytes, bool zeroed = false);
  int32_t add_entries(const LogitAdjustment& from, AdjustRow& row, AdjustEntry* entries,
                      int32_t count) const;

  struct Row {
    bool maxima = false;  // group_max is of what the row is now
    int32_t first_entry = 0, entries = 0;
    std::vector<int32_t> bucket_counts;  // after kBucketMasses
  };

  // One choose() that is on its way: its tasks, and where the device tells of its tokens.
  struct Choices {
    Staged tasks;
    uint64_t number = 0;
    size_t count = 0;
    bool taken = true;
  };
  Choices& choices_of(uint64_t number);

  Backend& backend_;
  int device_;
  cudaStream_t stream_;
  int32_t* newest_;
  PeerLanes lanes_;
  DeviceLogits logits_;
  std::vector<Row> rows_;
  std::vector<int32_t> order_;  // of the questions, as tasks
  Staged tasks_;
  Staged results_;
  // In turns, since what choose() follows may not have been copied yet.
  std::array<Staged, kInFlight + 1> adjustments_;
  size_t turn_ = 0;
  const AdjustEntry* entries_ = nullptr;  // device
  Buffer raw_;
  Buffer partial_;
  Buffer arrivals_;
  Buffer group_max_;
  std::array<Choices, kInFlight> choices_;
  uint64_t last_number_ = 0;
  ChosenTokens* chosen_ = nullptr;  // [kInFlight], page-locked
  Buffer answers_;                  // of choose()
  Buffer cut_bins_, cut_lists_;
  std::vector<Buffer> outgrown_;  // as in Staged
};

}  // namespace trireme::cuda
