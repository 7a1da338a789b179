// Attention of a mixed step, a prompt's chunk and decode rows: one launch after the other as the
// backend does it, against both at once on two streams. JSON lines: `value` the time of one layer
// in microseconds, `ratio` (one stream) / (two streams), above 1 where two streams are faster.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "bench/cuda_values.h"
#include "kernels/cuda/attention.h"

namespace trireme::cuda {
namespace {

constexpr int kQHeads = 32, kKvHeads = 8, kDim = 128, kBlock = 16, kLayers = 32;

// Rows of one kind with their cache. Layers take turns over `copies` caches, so that a layer's KV
// is not in L2 from the layer before.
struct Rows {
  std::vector<DeviceRow> rows;
  DeviceRow* device_rows = nullptr;
  DeviceTables tables;
  std::vector<int32_t> begins;
  size_t cache = 0;  // elements of K, and of V
  int copies = 0;
  uint16_t *k = nullptr, *v = nullptr, *qkv = nullptr, *out = nullptr;
  int64_t tokens = 0, blocks = 0;

  Rows(std::vector<DeviceRow> all, int most_copies) : rows(std::move(all)), copies(most_copies) {
    std::vector<int32_t> table;
    for (const DeviceRow& row : rows) {
      begins.push_back(static_cast<int32_t>(table.size()));
      table.resize(table.size() + (row.position + row.count + kBlock - 1) / kBlock);
      tokens += row.count;
    }
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(7));
    blocks = static_cast<int64_t>(table.size());
    cache = table.size() * kKvHeads * kBlock * kDim;
    k = random_values(cache * copies, 1);
    v = random_values(cache * copies, 2);
    qkv = random_values(static_cast<size_t>(tokens) * width(), 3);
    out = allocate<uint16_t>(static_cast<size_t>(tokens) * kQHeads * kDim);
    device_rows = upload(rows);
    tables = {upload(table), upload(begins)};
  }
  ~Rows() {
    for (const void* data :
         {static_cast<const void*>(k), static_cast<const void*>(v), static_cast<const void*>(qkv),
          static_cast<const void*>(out), static_cast<const void*>(device_rows),
          static_cast<const void*>(tables.blocks), static_cast<const void*>(tables.table_begin)}) {
      cudaFree(const_cast<void*>(data));
    }
  }
  Rows(const Rows&) = delete;
  static int width() { return (kQHeads + 2 * kKvHeads) * kDim; }
  DeviceKv layer(int i) const {
    const size_t at = cache * static_cast<size_t>(i % copies);
    return {k + at, v + at, blocks, kKvHeads, kDim, kBlock};
  }
};

class Prefill {
 public:
  Prefill(int position, int tokens)
      : rows_({{.token_begin = 0, .count = tokens, .position = position}}, 2) {
    std::vector<PrefillTile> tiles;
    plan_prefill(rows_.rows, kDim, tiles);
    args_.q = rows_.qkv;
    args_.q_stride = Rows::width();
    args_.q_heads = kQHeads;
    args_.scale = 0.088f;
    args_.rows = rows_.device_rows;
    args_.tables = rows_.tables;
    args_.tiles = upload(tiles);
    args_.tile_count = static_cast<int32_t>(tiles.size());
    args_.out = rows_.out;
  }
  ~Prefill() { cudaFree(const_cast<PrefillTile*>(args_.tiles)); }
  void launch(int layer, cudaStream_t stream) {
    args_.kv = rows_.layer(layer);
    launch_prefill_attention(args_, stream);
  }

 private:
  Rows rows_;
  PrefillAttention args_;
};

class Decode {
 public:
  Decode(int count, int length, int multiprocessors)
      : rows_(make_rows(count, length), 4), inv_freq_(upload(std::vector<float>(kDim / 2, 0.01f))) {
    args_.q = rows_.qkv;
    args_.k = rows_.qkv + kQHeads * kDim;
    args_.v = rows_.qkv + (kQHeads + kKvHeads) * kDim;
    args_.q_stride = args_.kv_stride = Rows::width();
    args_.q_heads = kQHeads;
    args_.prepare.inv_freq = inv_freq_;
    args_.prepare.rotary_dim = kDim;
    args_.scale = 0.088f;
    args_.rows = rows_.device_rows;
    args_.tables = rows_.tables;
    args_.max_items = decode_max_items(count, kKvHeads, multiprocessors);
    std::vector<DecodeItem> items;
    plan_decode(rows_.rows, 0, kBlock, kKvHeads, multiprocessors, args_.max_items, items);
    for (DecodeItem& item : items) item.table = rows_.begins[static_cast<size_t>(item.row)];
    args_.items = upload(items);
    args_.item_count = upload(std::vector<int32_t>{static_cast<int32_t>(items.size())});
    args_.early_context = true;
    const size_t bytes = decode_workspace_bytes(args_.max_items, kQHeads, kDim);
    args_.workspace = allocate<uint8_t>(bytes);
    TRIREME_CUDA(cudaMemset(args_.workspace, 0, bytes));
    args_.out = rows_.out;
  }
  ~Decode() {
    for (const void* data :
         {static_cast<const void*>(inv_freq_), static_cast<const void*>(args_.items),
          static_cast<const void*>(args_.item_count), static_cast<const void*>(args_.workspace)}) {
      cudaFree(const_cast<void*>(data));
    }
  }
  void launch(int layer, cudaStream_t stream) {
    args_.kv = rows_.layer(layer);
    launch_decode_attention(args_, stream);
  }

 private:
  static std::vector<DeviceRow> make_rows(int count, int length) {
    std::vector<DeviceRow> rows;
    for (int i = 0; i < count; ++i) rows.push_back({i, 1, length - 1, 0});
    return rows;
  }
  Rows rows_;
  float* inv_freq_;
  DecodeAttention args_;
};

class Bench {
 public:
  Bench() {
    cudaDeviceProp device;
    TRIREME_CUDA(cudaGetDeviceProperties(&device, 0));
    name_ = device.name;
    multiprocessors_ = device.multiProcessorCount;
    for (cudaStream_t* stream : {&main_, &side_}) {
      TRIREME_CUDA(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
    }
    for (cudaEvent_t* event : {&fork_, &join_}) {
      TRIREME_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    }
    for (cudaEvent_t* event : {&begin_, &end_}) TRIREME_CUDA(cudaEventCreate(event));
  }

  void mixed(int position, int tokens, int count, int length) {
    Prefill prefill(position, tokens);
    Decode decode(count, length, multiprocessors_);
    const std::function<void(int)> ways[] = {
        [&](int layer) { prefill.launch(layer, main_); },
        [&](int layer) { decode.launch(layer, main_); },
        [&](int layer) {
          prefill.launch(layer, main_);
          decode.launch(layer, main_);
        },
        [&](int layer) { at_once(layer, prefill, decode, false); },
        [&](int layer) { at_once(layer, prefill, decode, true); }};
    std::vector<std::vector<double>> us(std::size(ways));
    for (int round = 0; round < 12; ++round) {  // the first one warms the chip
      for (size_t i = 0; i < std::size(ways); ++i) {
        const double one = microseconds(ways[i]);
        if (round > 0) us[i].push_back(one);
      }
    }
    for (auto& each : us) std::nth_element(each.begin(), each.begin() + 5, each.end());
    const double serial = us[2][5], best = std::min(us[3][5], us[4][5]);
    std::printf(
        "{\"name\": \"mixed_attention/chunk%d_at%d/decode%dx%d\", \"value\": %.2f, \"unit\": "
        "\"us\", \"baseline\": %.2f, \"ratio\": %.3f, \"prefill_us\": %.2f, \"decode_us\": %.2f, "
        "\"two_streams_us\": %.2f, \"decode_first_us\": %.2f, \"device\": \"%s\"}\n",
        tokens, position, count, length, best, serial, serial / best, us[0][5], us[1][5], us[3][5],
        us[4][5], name_.c_str());
    std::fflush(stdout);
  }

 private:
  // Both begin when the layer's products are done, and what follows waits for both.
  void at_once(int layer, Prefill& prefill, Decode& decode, bool decode_first) {
    TRIREME_CUDA(cudaEventRecord(fork_, main_));
    TRIREME_CUDA(cudaStreamWaitEvent(side_, fork_));
    if (decode_first) decode.launch(layer, side_);
    prefill.launch(layer, main_);
    if (!decode_first) decode.launch(layer, side_);
    TRIREME_CUDA(cudaEventRecord(join_, side_));
    TRIREME_CUDA(cudaStreamWaitEvent(main_, join_));
  }
  // Of a layer.
  double microseconds(const std::function<void(int)>& layer) {
    TRIREME_CUDA(cudaEventRecord(begin_, main_));
    for (int i = 0; i < kLayers; ++i) layer(i);
    TRIREME_CUDA(cudaEventRecord(end_, main_));
    TRIREME_CUDA(cudaEventSynchronize(end_));
    float ms = 0;
    TRIREME_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
    return ms * 1e3 / kLayers;
  }

  std::string name_;
  int multiprocessors_ = 0;
  cudaStream_t main_ = nullptr, side_ = nullptr;
  cudaEvent_t fork_ = nullptr, join_ = nullptr, begin_ = nullptr, end_ = nullptr;
};

void run() {
  Bench bench;
  for (const int position : {0, 6144}) {
    for (const int tokens : {256, 512, 2048}) {
      for (const auto& [count, length] : {std::pair{16, 1024}, {64, 1024}, {128, 4096}}) {
        bench.mixed(position, tokens, count, length);
      }
    }
  }
}

}  // namespace
}  // namespace trireme::cuda

int main() {
  try {
    trireme::cuda::run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
