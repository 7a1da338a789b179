#include "runtime/model/tensor_sums_start.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "runtime/model/json_file.h"

namespace trireme {
namespace {

constexpr int kTableVersion = 1;

// Kernels of ours are queued, or captured into a graph, here.
class LedgerPeerSums final : public PeerSums {
 public:
  LedgerPeerSums(std::unique_ptr<PeerSums> inner, Ledger& ledger, std::vector<int32_t> ranks)
      : inner_(std::move(inner)),
        ledger_(ledger),
        group_(ledger.add_group("peer sums", std::move(ranks))) {}

  bool takes(int64_t rows, int64_t cols, DType dtype) const override {
    return inner_->takes(rows, cols, dtype);
  }
  void sum(MatrixView x, PeerShots shots, int blocks) override {
    begin(x);
    inner_->sum(x, shots, blocks);
    ledger_.end();
  }
  void add_rms_norm(MatrixView residual, MatrixView delta, const float* weight, float eps,
                    MatrixView out, PeerShots shots) override {
    begin(delta);
    inner_->add_rms_norm(residual, delta, weight, eps, out, shots);
    ledger_.end();
  }

 private:
  void begin(MatrixView x) {
    const auto bytes = static_cast<uint64_t>(x.rows * x.cols) * size_of(x.dtype);
    ledger_.begin(
        {LedgerOp::kAllReduce, x.dtype, group_, -1, bytes, ledger_.next_number(group_), true});
  }

  std::unique_ptr<PeerSums> inner_;
  Ledger& ledger_;
  int16_t group_;
};

Json to_json(const std::vector<SumChoice>& choices) {
  Json list = Json::array();
  for (const SumChoice& one : choices) {
    list.push_back({{"bytes", one.bytes},
                    {"way", to_string(one.way)},
                    {"blocks", one.blocks},
                    {"microseconds", one.microseconds}});
  }
  return list;
}

std::vector<SumChoice> choices_of(const Json& json, const char* key, const std::string& what) {
  const auto list = json.find(key);
  if (list == json.end() || !list->is_array()) {
    fail(ErrorCode::kDataLoss, "{}: no list '{}'", what, key);
  }
  std::vector<SumChoice> choices;
  for (const Json& entry : *list) {
    const JsonFields fields(entry, what);
    SumChoice one;
    one.bytes = fields.required_integer("bytes", 1, int64_t{1} << 40);
    one.blocks = static_cast<int32_t>(fields.required_integer("blocks", 0, 4096));
    one.microseconds = fields.required_number("microseconds", 0, 1e9);
    const std::string way = fields.string("way").value_or("");
    bool known = false;
    for (const auto named :
         {SumChoice::Way::kCommunicator, SumChoice::Way::kOneShot, SumChoice::Way::kTwoShots}) {
      if (way != to_string(named)) continue;
      one.way = named;
      known = true;
    }
    if (!known || (!choices.empty() && one.bytes <= choices.back().bytes)) {
      fail(ErrorCode::kDataLoss, "{}: '{}': entry {} makes no sense", what, key, choices.size());
    }
    choices.push_back(one);
  }
  return choices;
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  return file ? text.str() : "";
}

// A table that cannot be kept is measured again next time.
void write_text(const std::string& path, const std::string& text) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  const std::string part = path + "." + std::to_string(getpid());
  {
    std::ofstream file(part, std::ios::binary);
    if (!file || !(file << text)) return;
  }
  std::filesystem::rename(part, path, error);
  if (error) std::filesystem::remove(part, error);
}

// Rank 0's text, on all ranks.
std::string broadcast_text(Communicator& host, std::string text) {
  uint64_t size = text.size();
  host.broadcast(std::as_writable_bytes(std::span(&size, 1)), 0);
  text.resize(size);
  if (size > 0) host.broadcast(std::as_writable_bytes(std::span(text.data(), size)), 0);
  return text;
}

void use_or_measure(TensorSums& sums, Communicator& host, const std::string& key,
                    const SumBuffers& buffers) {
  const std::string path = host.rank() == 0 ? sum_table_file(key) : "";
  const std::string kept = broadcast_text(host, path.empty() ? "" : read_text(path));
  if (!kept.empty()) {
    try {
      sums.set_table(parse_sum_table(kept, key));
      return;
    } catch (const Error& error) {  // the same on all ranks
      log::debug("{}: measured again: {}", path, error.what());
    }
  }
  sums.tune(host, buffers);
  if (!path.empty()) write_text(path, format_sum_table(sums.table(), key));
}

}  // namespace

std::string sum_table_file(std::string_view key) {
  std::string folder;
  if (const char* own = std::getenv("TRIREME_CACHE"); own != nullptr) {
    folder = own;
  } else if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != 0) {
    folder = std::string(cache) + "/trireme";
  } else if (const char* home = std::getenv("HOME"); home != nullptr && *home != 0) {
    folder = std::string(home) + "/.cache/trireme";
  }
  if (folder.empty()) return "";
  return fmt::format("{}/sums-{:016x}.json", folder, std::hash<std::string_view>{}(key));
}

std::string format_sum_table(const SumTable& table, std::string_view key) {
  const Json json{{"version", kTableVersion},
                  {"key", key},
                  {"fused", to_json(table.fused)},
                  {"plain", to_json(table.plain)}};
  return json.dump(1) + "\n";
}

SumTable parse_sum_table(std::string_view text, std::string_view key) {
  const std::string what = "table of sums";
  const Json json = parse_json(text, what);
  const JsonFields fields(json, what);
  if (fields.required_integer("version", 0, 1 << 20) != kTableVersion) {
    fail(ErrorCode::kDataLoss, "{}: of another version", what);
  }
  if (fields.string("key").value_or("") != key) {
    fail(ErrorCode::kDataLoss, "{}: of another machine", what);
  }
  return {choices_of(json, "fused", what), choices_of(json, "plain", what)};
}

std::unique_ptr<TensorSums> make_tensor_sums(Communicator& host, DeviceCommunicator* device,
                                             Backend& backend, int64_t width, Ledger* ledger,
                                             std::vector<int32_t> group) {
  if (device == nullptr) return std::make_unique<TensorSums>(host, backend);
  std::unique_ptr<PeerSums> peers;
  const size_t bytes = backend.peer_bytes(host.size(), width);
  std::string why = "the backend has no kernels for it";
  if (bytes > 0) {
    if (auto memory = device->map_peers(host, bytes, why)) {
      peers = backend.make_peer_sums(std::move(*memory), width);
    }
  }
  const bool mapped = peers != nullptr;
  if (mapped && ledger != nullptr) {
    peers = std::make_unique<LedgerPeerSums>(std::move(peers), *ledger, std::move(group));
  }
  auto sums = std::make_unique<TensorSums>(*device, backend, std::move(peers));
  if (!mapped) {
    if (host.rank() == 0) log::info("sums between GPUs go through NCCL alone: {}", why);
    return sums;
  }
  return sums;
}

void tune_sums(TensorSums& sums, Communicator& host, const DeviceCommunicator& device,
               const SumBuffers& buffers) {
  if (!sums.has_peers()) return;
  const std::string key =
      fmt::format("{}, {} rows of {}", device.identity(), buffers.delta.rows, buffers.delta.cols);
  use_or_measure(sums, host, key, buffers);
  if (host.rank() != 0) return;
  for (const std::string& line : sums.describe()) log::debug("{}", line);
}

}  // namespace trireme
