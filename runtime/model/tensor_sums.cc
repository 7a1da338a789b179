#include "runtime/model/tensor_sums.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "base/error.h"
#include "base/log.h"

namespace trireme {
namespace {

using Way = SumChoice::Way;

// Without a measurement: what an H100 host's NVLink shows.
SumTable default_table(int ranks) {
  const int64_t one_shot = ranks <= 2 ? int64_t{1} << 20 : int64_t{64} << 10;
  std::vector<SumChoice> choices{{one_shot, Way::kOneShot, 0, 0.0}};
  if (ranks > 2) choices.push_back({int64_t{1} << 20, Way::kTwoShots, 0, 0.0});
  return {choices, choices};
}

PeerShots shots_of(Way way) { return way == Way::kOneShot ? PeerShots::kOne : PeerShots::kTwo; }

int64_t bytes_of(int64_t rows, int64_t cols, DType dtype) {
  return rows * cols * static_cast<int64_t>(size_of(dtype));
}

}  // namespace

const char* to_string(SumChoice::Way way) {
  switch (way) {
    case Way::kCommunicator: return "communicator";
    case Way::kOneShot: return "one-shot";
    case Way::kTwoShots: return "two-shots";
  }
  return "?";
}

const SumChoice& SumTable::of(bool is_fused, int64_t bytes) const {
  static const SumChoice communicator;
  const auto& choices = is_fused ? fused : plain;
  const auto it = std::find_if(choices.begin(), choices.end(),
                               [bytes](const SumChoice& one) { return bytes <= one.bytes; });
  return it == choices.end() ? communicator : *it;
}

TensorSums::TensorSums(Communicator& tp, Backend& backend, std::unique_ptr<PeerSums> peers)
    : tp_(tp), backend_(backend), peers_(std::move(peers)) {
  if (peers_ != nullptr) table_ = default_table(tp.size());
  if (tp.size() > 1) beside_ = backend.make_side_stream();
  if (beside_ != nullptr) {
    for (Part& part : parts_) part = {backend.make_mark(), backend.make_mark()};
  }
  const char* named = std::getenv("TRIREME_ALL_REDUCE");
  if (named == nullptr || *named == 0 || std::string(named) == "auto") return;
  for (const Way way : {Way::kCommunicator, Way::kOneShot, Way::kTwoShots}) {
    if (std::string(named) != to_string(way)) continue;
    forced_ = true;
    forced_way_ = way;
    return;
  }
  fail(ErrorCode::kInvalidArgument,
       "TRIREME_ALL_REDUCE: '{}' is not auto, communicator, one-shot or two-shots", named);
}

SumChoice TensorSums::choose(bool fused, int64_t rows, int64_t cols, DType dtype) const {
  if (peers_ == nullptr || !peers_->takes(rows, cols, dtype)) return {};
  SumChoice choice = table_.of(fused, bytes_of(rows, cols, dtype));
  if (forced_) choice.way = forced_way_;
  return choice;
}

void TensorSums::run_plain(const SumChoice& choice, MatrixView x) {
  if (choice.way == Way::kCommunicator) {
    tp_.all_reduce_sum(x.data, x.rows * x.cols, x.dtype, {backend_.stream()});
  } else {
    peers_->sum(x, shots_of(choice.way), choice.blocks);
  }
}

void TensorSums::run_fused(const SumChoice& choice, MatrixView residual, MatrixView delta,
                           const float* weight, float eps, MatrixView out) {
  if (choice.way == Way::kCommunicator) {
    tp_.all_reduce_sum(delta.data, delta.rows * delta.cols, delta.dtype, {backend_.stream()});
    backend_.add_rms_norm(residual, delta, weight, eps, out);
  } else {
    peers_->add_rms_norm(residual, delta, weight, eps, out, shots_of(choice.way));
  }
}

void TensorSums::add_up(MatrixView x) {
  if (tp_.size() == 1 || omitted_) return;
  run_plain(choose(false, x.rows, x.cols, x.dtype), x);
}

void TensorSums::add_rms_norm(MatrixView residual, MatrixView delta, const float* weight, float eps,
                              MatrixView out) {
  if (omitted_ || size() == 1) return backend_.add_rms_norm(residual, delta, weight, eps, out);
  run_fused(choose(true, delta.rows, delta.cols, delta.dtype), residual, delta, weight, eps, out);
}

void TensorSums::add_normed(MatrixView residual, MatrixView delta, const float* delta_norm,
                            const float* weight, float eps, MatrixView out) {
  add_up(delta);
  backend_.add_normed(residual, delta, delta_norm, weight, eps, out);
}

// What goes through peers' memory is too small to be worth a second stream: all of it is in end().
void TensorSums::begin(int part, MatrixView delta) {
  const SumChoice choice = choose(true, delta.rows, delta.cols, delta.dtype);
  if (omitted_ || choice.way != Way::kCommunicator) return;
  void* stream = backend_.stream();
  Part& marks = parts_[static_cast<size_t>(part)];
  if (beside_ != nullptr) {
    marks.computed->set(stream);
    stream = beside_->native();
    marks.computed->await(stream);
  }
  tp_.all_reduce_sum(delta.data, delta.rows * delta.cols, delta.dtype, {stream});
  if (beside_ != nullptr) marks.summed->set(stream);
}

void TensorSums::end(int part, MatrixView residual, MatrixView delta, const float* delta_norm,
                     const float* weight, float eps, MatrixView out) {
  const SumChoice choice = choose(true, delta.rows, delta.cols, delta.dtype);
  if (!omitted_ && choice.way != Way::kCommunicator) {
    if (delta_norm != nullptr) {
      return add_normed(residual, delta, delta_norm, weight, eps, out);
    }
    return run_fused(choice, residual, delta, weight, eps, out);
  }
  if (!omitted_ && beside_ != nullptr) {
    parts_[static_cast<size_t>(part)].summed->await(backend_.stream());
  }
  if (delta_norm != nullptr) {
    backend_.add_normed(residual, delta, delta_norm, weight, eps, out);
  } else {
    backend_.add_rms_norm(residual, delta, weight, eps, out);
  }
}

// Every rank measures the same ways in the same order; what counts is the slowest rank's time.
void TensorSums::tune(Communicator& host, const SumBuffers& buffers) {
  if (peers_ == nullptr || tp_.size() == 1) return;
  constexpr int kTimes = 20;
  const DType dtype = buffers.delta.dtype;
  const int64_t width = buffers.delta.cols;
  int64_t most = 1;
  while (2 * most <= buffers.delta.rows && peers_->takes(2 * most, width, dtype)) most *= 2;
  for (const MatrixView& one : {buffers.residual, buffers.delta}) {
    backend_.fill_bytes(one.row_range(0, most), 0);
  }
  const auto slowest = [&](const std::function<void()>& work) {
    return largest_of_ranks(host, backend_.measure(work, kTimes)) * 1e6;
  };
  SumTable table;
  for (const bool fused : {true, false}) {
    const DType type = fused ? dtype : DType::kF32;
    auto& choices = fused ? table.fused : table.plain;
    for (int64_t rows = 1; rows <= most && peers_->takes(rows, width, type); rows *= 2) {
      SumChoice best;
      for (const Way way : {Way::kCommunicator, Way::kOneShot, Way::kTwoShots}) {
        // A row of the fused sum is one block; the plain one may be cut finer.
        for (const int blocks : {0, 16, 64}) {
          if (blocks > 0 && (fused || way == Way::kCommunicator)) continue;
          SumChoice tried{bytes_of(rows, width, type), way, blocks, 0.0};
          log::debug("measuring {} sum of {} bytes: {}, {} blocks", fused ? "a fused" : "a plain",
                     tried.bytes, to_string(way), blocks);
          tried.microseconds = slowest([&] {
            if (fused) {
              run_fused(tried, buffers.residual.row_range(0, rows),
                        buffers.delta.row_range(0, rows), buffers.norm, 1e-5f,
                        buffers.out.row_range(0, rows));
            } else {
              run_plain(tried, buffers.residual.row_range(0, rows));
            }
          });
          if (best.bytes == 0 || tried.microseconds < best.microseconds) best = tried;
        }
      }
      choices.push_back(best);
    }
  }
  table_ = std::move(table);
}

std::vector<std::string> TensorSums::describe() const {
  std::vector<std::string> lines;
  for (const bool fused : {true, false}) {
    for (const SumChoice& one : fused ? table_.fused : table_.plain) {
      lines.push_back(fmt::format(
          "{} up to {} bytes: {}{}{}", fused ? "sum, add and norm" : "sum", one.bytes,
          to_string(one.way), one.blocks > 0 ? fmt::format(", {} blocks", one.blocks) : "",
          one.microseconds > 0 ? fmt::format(", {:.2f} us", one.microseconds) : ""));
    }
  }
  return lines;
}

}  // namespace trireme
