#include "runtime/model/dummy_source.h"

#include <algorithm>
#include <filesystem>
#include <random>
#include <unordered_map>
#include <utility>

#include "base/buffer.h"
#include "base/dtype.h"
#include "base/error.h"
#include "runtime/model/hf_config.h"
#include "runtime/model/json_file.h"
#include "runtime/model/model_tensors.h"

namespace trireme {
namespace {

constexpr int64_t kPoolElements = int64_t{16} << 20;

class DummySource : public WeightSource {
 public:
  DummySource(const std::string& directory, int context) : path_(directory) {
    const std::string file = directory + "/config.json";
    const auto parsed = parse_hugging_face_config(read_json_file(file), nullptr, file, context);
    config_ = parsed.model;
    config_.tied_embeddings = parsed.tied_embeddings.value_or(false);
    if (config_.name.empty()) {
      config_.name = std::filesystem::path(directory).lexically_normal().filename().string();
    }
    fill_pool();
    for (const TensorShape& shape : model_tensors(config_)) {
      SourceTensor tensor;
      tensor.name = tensor.origin = shape.name;
      tensor.format = QuantFormat::kBF16;
      tensor.rows = shape.rows;
      tensor.cols = shape.cols;
      if (std::max(shape.cols, shape.rows) > kPoolElements) {
        fail(ErrorCode::kUnimplemented, "{}: '{}' is too large for random weights", file,
             shape.name);
      }
      tensor.data = shape.vector ? ones_.data() : pool_.data();
      if (!shape.vector) tensor.distinct_rows = kPoolElements / shape.cols;
      index_.emplace(tensor.name, tensors_.size());
      tensors_.push_back(std::move(tensor));
    }
  }

  const ModelConfig& config() const override { return config_; }
  const std::string& path() const override { return path_; }
  std::optional<SourceTensor> find(const std::string& name) const override {
    const auto at = index_.find(name);
    if (at == index_.end()) return std::nullopt;
    return tensors_[at->second];
  }
  void release(const SourceTensor& /*tensor*/) const override {}
  std::vector<SourceTensor> tensors() const override { return tensors_; }

 private:
  void fill_pool() {
    pool_ = Buffer(static_cast<size_t>(kPoolElements) * 2);
    std::minstd_rand engine(1);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    // Distinct rows come from a fresh megabyte, repeated at odd distances.
    std::vector<uint16_t> fresh((size_t{1} << 20) + 4099);
    for (uint16_t& value : fresh) value = f32_to_bf16(normal(engine));
    auto* to = pool_.as<uint16_t>();
    for (int64_t at = 0; at < kPoolElements;) {
      const auto count = std::min<int64_t>(static_cast<int64_t>(fresh.size()), kPoolElements - at);
      std::copy_n(fresh.begin(), count, to + at);
      at += count;
    }
    ones_ = Buffer(static_cast<size_t>(kPoolElements) * 2);
    std::fill_n(ones_.as<uint16_t>(), kPoolElements, f32_to_bf16(1.0f));
  }

  ModelConfig config_;
  std::string path_;
  Buffer pool_;
  Buffer ones_;
  std::vector<SourceTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace

std::unique_ptr<WeightSource> make_dummy_source(const std::string& directory, int context) {
  return std::make_unique<DummySource>(directory, context);
}

}  // namespace trireme
