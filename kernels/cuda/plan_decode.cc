// How decode contexts are dealt out to thread blocks.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/cuda/attention.h"

namespace trireme::cuda {
namespace {

constexpr int kBlocksPerMultiprocessor = 2;
constexpr int64_t kItemCost = 48;  // what an item costs beside its positions, in positions
constexpr int64_t kCut = 64;       // parts end at multiples of this
constexpr int64_t kMinSpan = 128;  // less work does not pay a block's start and the merge

int64_t most_spans(int kv_heads, int multiprocessors) {
  return std::max(1, kBlocksPerMultiprocessor * multiprocessors / kv_heads);
}

struct Context {
  int32_t begin = 0, end = 0;
  int64_t cost() const { return end - begin + kItemCost; }
};

Context context_of(const DeviceRow& row, int window) {
  const int32_t end = row.position + 1;
  return {window > 0 ? std::max(0, end - window) : 0, end};
}

// Puts the items that start spans first and links the others behind them.
void link_spans(std::vector<int32_t>& span_begin, std::vector<DecodeItem>& items) {
  if (static_cast<size_t>(span_begin.back()) == items.size()) span_begin.pop_back();
  std::vector<DecodeItem> ordered;
  ordered.reserve(items.size());
  for (const int32_t begin : span_begin) {
    ordered.push_back(items[static_cast<size_t>(begin)]);
    ordered.back().starts = 1;
  }
  for (size_t span = 0; span < span_begin.size(); ++span) {
    const size_t end =
        span + 1 < span_begin.size() ? static_cast<size_t>(span_begin[span + 1]) : items.size();
    size_t previous = span;
    for (auto i = static_cast<size_t>(span_begin[span]) + 1; i < end; ++i) {
      ordered[previous].next = static_cast<int32_t>(ordered.size());
      previous = ordered.size();
      ordered.push_back(items[i]);
    }
  }
  items.swap(ordered);
}

}  // namespace

int32_t decode_max_items(int32_t rows, int kv_heads, int multiprocessors) {
  return static_cast<int32_t>(rows + most_spans(kv_heads, multiprocessors) - 1);
}

void plan_decode(std::span<const DeviceRow> rows, int window, int /*block_size*/, int kv_heads,
                 int multiprocessors, int32_t max_items, std::vector<DecodeItem>& items) {
  items.clear();
  if (rows.empty()) return;
  const auto count = static_cast<int64_t>(rows.size());
  if (count > max_items) {
    fail(ErrorCode::kInternal, "CUDA: {} decode rows, room for {} items", count, max_items);
  }
  int64_t total = 0;
  for (const DeviceRow& row : rows) total += context_of(row, window).cost();
  // Each span but the last ends inside at most one row, which costs one item more.
  const int64_t spans = std::clamp<int64_t>(
      total / kMinSpan, 1, std::min(most_spans(kv_heads, multiprocessors), max_items - count + 1));

  std::vector<int32_t> span_begin = {0};
  const auto target = [&](size_t span) { return total * static_cast<int64_t>(span) / spans; };
  int64_t done = 0;  // work dealt out so far
  // Moves on to the next span where the current one has items and is within half a cut of full.
  const auto close_span = [&] {
    const bool open = static_cast<size_t>(span_begin.back()) < items.size();
    if (open && static_cast<int64_t>(span_begin.size()) < spans &&
        done + kCut / 2 >= target(span_begin.size())) {
      span_begin.push_back(static_cast<int32_t>(items.size()));
    }
  };
  for (size_t r = 0; r < rows.size(); ++r) {
    const Context context = context_of(rows[r], window);
    const size_t first = items.size();
    int32_t at = context.begin;
    while (at < context.end) {
      // Room in this span; a cut must leave something worth a part on both sides. (What an
      // additional part costs is not in `total` and not counted.)
      const int64_t cost = items.size() == first ? kItemCost : 0;
      const int64_t room = target(span_begin.size()) - done - cost;
      int32_t end = context.end;
      if (static_cast<int64_t>(span_begin.size()) < spans && end - at > room + kCut / 2) {
        const int64_t share = (at + room + kCut / 2) / kCut * kCut;
        if (share - at < kCut && static_cast<size_t>(span_begin.back()) < items.size()) {
          span_begin.push_back(static_cast<int32_t>(items.size()));  // as good as full
          continue;
        }
        const int64_t cut = std::max(share, (at + 2 * kCut - 1) / kCut * kCut);
        if (end - cut >= kCut) end = static_cast<int32_t>(cut);
      }
      DecodeItem item;
      item.row = static_cast<int32_t>(r);
      item.begin = at;
      item.end = end;
      item.part = static_cast<int32_t>(items.size() - first);
      item.slot = static_cast<int32_t>(items.size());
      item.position = rows[r].position;
      item.token = rows[r].token_begin;
      items.push_back(item);
      done += end - at + cost;
      at = end;
      close_span();
    }
    for (size_t i = first; i < items.size(); ++i) {
      items[i].parts = static_cast<int32_t>(items.size() - first);
    }
  }
  link_spans(span_begin, items);
}

}  // namespace trireme::cuda
