#include "runtime/model/weight_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/mapped_file.h"
#include "runtime/model/arch_table.h"
#include "runtime/model/dummy_source.h"
#include "runtime/model/gguf.h"
#include "runtime/model/gguf_config.h"
#include "runtime/model/hf_config.h"
#include "runtime/model/json_file.h"
#include "runtime/model/model_tensors.h"
#include "runtime/model/packed_matrix.h"
#include "runtime/model/safetensors.h"

namespace trireme {
namespace {

// A tensor as its file describes it, before it is checked.
struct FileTensor {
  std::string name;
  std::string type;
  std::optional<QuantFormat> format;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  const MappedFile* file = nullptr;
};

// Where a canonical tensor's rows lie within the file's.
struct RowRange {
  int64_t begin = 0;
  int64_t total = 0;    // rows of the file's tensor
  int64_t experts = 0;  // the file's tensor is [experts, total / experts, cols]; 0: a matrix
};

RowRange range_of(RowsOf rows, const TensorShape& wanted, const ModelConfig& config) {
  const int64_t q = int64_t{config.q_heads} * config.head_dim;
  const int64_t kv = int64_t{config.kv_heads} * config.head_dim;
  switch (rows) {
    case RowsOf::kAll: break;
    case RowsOf::kQkvQ: return {0, q + 2 * kv};
    case RowsOf::kQkvK: return {q, q + 2 * kv};
    case RowsOf::kQkvV: return {q + kv, q + 2 * kv};
    case RowsOf::kTwoGate: return {0, 2 * wanted.rows};
    case RowsOf::kTwoUp: return {wanted.rows, 2 * wanted.rows};
    case RowsOf::kExperts:
      return {wanted.expert * wanted.rows, wanted.experts * wanted.rows, wanted.experts};
  }
  return {0, wanted.rows};
}

std::vector<int64_t> file_shape(const TensorShape& wanted, const RowRange& range) {
  if (wanted.vector) return {wanted.cols};
  if (range.experts > 0) return {range.experts, range.total / range.experts, wanted.cols};
  return {range.total, wanted.cols};
}

SourceTensor check_tensor(const FileTensor& found, const TensorShape& wanted,
                          const RowRange& range) {
  const std::string& path = found.file->path();
  const std::vector<int64_t> needed = file_shape(wanted, range);
  auto shape = found.shape;  // leading ones dropped
  while (shape.size() > needed.size() && shape.front() == 1) shape.erase(shape.begin());
  if (shape != needed) {
    fail(ErrorCode::kDataLoss, "{}: tensor '{}' has shape [{}], the configuration needs [{}]", path,
         found.name, fmt::join(found.shape, ", "), fmt::join(needed, ", "));
  }
  if (!found.format || (wanted.vector && !is_plain(*found.format))) {
    fail(ErrorCode::kUnimplemented, "{}: tensor '{}' is of type {}, which is not supported{}", path,
         found.name, printable(found.type), wanted.vector ? " for a vector" : "");
  }
  SourceTensor tensor;
  tensor.name = wanted.name;
  tensor.origin = found.name;
  tensor.format = *found.format;
  tensor.rows = wanted.rows;
  tensor.cols = wanted.cols;
  tensor.data = found.data + range.begin * row_bytes(*found.format, wanted.cols);
  return tensor;
}

// What both formats share: the checked tensors by canonical name.
class MappedSource : public WeightSource {
 public:
  explicit MappedSource(std::string path) : path_(std::move(path)) {}

  const ModelConfig& config() const override { return config_; }
  const std::string& path() const override { return path_; }

  std::optional<SourceTensor> find(const std::string& name) const override {
    const auto at = index_.find(name);
    if (at == index_.end()) return std::nullopt;
    return tensors_[at->second];
  }

  std::vector<SourceTensor> tensors() const override { return tensors_; }

  void release(const SourceTensor& tensor) const override {
    const auto at = index_.find(tensor.name);
    if (at == index_.end()) return;
    if (tensor.packed) return tensor.packed->release();
    const auto bytes = static_cast<size_t>(tensor.rows * row_bytes(tensor.format, tensor.cols));
    files_[at->second]->release({tensor.data, bytes});
  }

 protected:
  void add(SourceTensor tensor, const MappedFile* file) {
    index_.emplace(tensor.name, tensors_.size());
    tensors_.push_back(std::move(tensor));
    files_.push_back(file);
  }

  [[noreturn]] void missing(const std::string& name) const {
    fail(ErrorCode::kDataLoss, "{}: tensor '{}' is missing", path_, name);
  }

  ModelConfig config_;

 private:
  std::string path_;
  std::vector<SourceTensor> tensors_;
  std::vector<const MappedFile*> files_;
  std::unordered_map<std::string, size_t> index_;
};

class HuggingFaceSource : public MappedSource {
 public:
  HuggingFaceSource(const std::string& directory, int context) : MappedSource(directory) {
    const auto parsed = read_config(directory, context);
    config_ = parsed.model;
    files_.emplace(directory);
    if (!parsed.tied_embeddings) {
      config_.tied_embeddings = !stem_in_files(
          *parsed.architecture, hugging_face_place(*parsed.architecture, "head.weight").name);
    }
    if (config_.name.empty()) {
      config_.name = std::filesystem::path(directory).lexically_normal().filename().string();
    }
    for (const TensorShape& wanted : model_tensors(config_)) {
      const auto [name, rows] = hugging_face_place(*parsed.architecture, wanted.name);
      const auto* entry = find_in_files(*parsed.architecture, name);
      const bool plain = entry != nullptr && entry->tensor.format;
      if (parsed.quantized && !plain && !wanted.vector) {
        const auto stem = stem_in_files(*parsed.architecture, name);
        if (!stem) missing(name);
        if (range_of(rows, wanted, config_).total != wanted.rows) {
          fail(ErrorCode::kUnimplemented,
               "{}: tensor '{}' is quantized and holds several matrices, which is not supported",
               directory, name);
        }
        add_packed(*parsed.quantized, *stem, name, wanted);
        continue;
      }
      if (entry == nullptr) missing(name);
      const SafeTensor& found = entry->tensor;
      SourceTensor tensor = check_tensor(
          {name, found.dtype, found.format, found.shape, found.bytes.data(), entry->file}, wanted,
          range_of(rows, wanted, config_));
      if (parsed.architecture->norms_less_one && wanted.name.ends_with("norm.weight")) {
        tensor.addend = 1.0f;
      }
      add(std::move(tensor), entry->file);
    }
  }

 private:
  // A name, and those that it has within a wrapper.
  static std::vector<std::string> names_of(const Architecture& architecture,
                                           const std::string& name) {
    constexpr std::string_view kUsual = "model.";
    std::vector<std::string> names{name};
    if (!name.starts_with(kUsual)) return names;
    for (const std::string_view prefix : architecture.wrapped_prefixes) {
      names.push_back(std::string(prefix) + name.substr(kUsual.size()));
    }
    return names;
  }
  const SafetensorsDirectory::Entry* find_in_files(const Architecture& architecture,
                                                   const std::string& name) const {
    for (const std::string& one : names_of(architecture, name)) {
      if (const auto* entry = files_->find(one)) return entry;
    }
    return nullptr;
  }
  // Of a matrix "STEM.weight", which may be what a quantizer writes in its place.
  std::optional<std::string> stem_in_files(const Architecture& architecture,
                                           const std::string& name) const {
    for (const std::string& one : names_of(architecture, name)) {
      const std::string stem = one.substr(0, one.size() - std::string_view(".weight").size());
      for (const char* part : {".weight", ".qweight", ".weight_packed"}) {
        if (files_->find(stem + part) != nullptr) return stem;
      }
    }
    return std::nullopt;
  }

  void add_packed(const QuantScheme& scheme, const std::string& stem, const std::string& name,
                  const TensorShape& wanted) {
    SourceTensor tensor;
    tensor.name = wanted.name;
    tensor.origin = name;
    tensor.rows = wanted.rows;
    tensor.cols = wanted.cols;
    tensor.packed =
        std::make_shared<PackedMatrix>(scheme, *files_, path(), stem, wanted.rows, wanted.cols);
    tensor.format = tensor.packed->format();
    add(std::move(tensor), nullptr);
  }

  static HuggingFaceConfig read_config(const std::string& directory, int context) {
    const std::string path = directory + "/config.json";
    const std::string generation_path = directory + "/generation_config.json";
    const Json config = read_json_file(path);
    Json generation;
    if (std::filesystem::exists(generation_path)) generation = read_json_file(generation_path);
    return parse_hugging_face_config(config, generation.is_null() ? nullptr : &generation, path,
                                     context);
  }

  std::optional<SafetensorsDirectory> files_;
};

class GgufSource : public MappedSource {
 public:
  GgufSource(const std::string& path, int context)
      : MappedSource(path), file_(path), gguf_(file_.bytes(), path) {
    const auto parsed = parse_gguf_config(gguf_, context);
    config_ = parsed.model;
    for (const TensorShape& wanted : model_tensors(config_)) {
      const auto [name, rows] = gguf_place(*parsed.architecture, wanted.name);
      const GgufTensor* found = gguf_.find_tensor(name);
      if (found == nullptr) missing(name);
      SourceTensor tensor = check_tensor({name, gguf_type_name(found->type), found->format,
                                          found->shape, found->bytes.data(), &file_},
                                         wanted, range_of(rows, wanted, config_));
      if (parsed.architecture->gguf_permutes_qk && is_query_or_key(wanted.name)) {
        tensor.permuted_head_dim = config_.head_dim;
      }
      add(std::move(tensor), &file_);
    }
  }

  const GgufFile* gguf() const override { return &gguf_; }

 private:
  static bool is_query_or_key(const std::string& name) {
    return name.ends_with(".q.weight") || name.ends_with(".q.bias") ||
           name.ends_with(".k.weight") || name.ends_with(".k.bias");
  }

  MappedFile file_;
  GgufFile gguf_;
};

}  // namespace

// Hugging Face keeps the two rotated halves of a head one after the other, GGUF's llama keeps
// them interleaved: element i of half h is row 2i + h.
int64_t SourceTensor::file_row(int64_t row) const {
  if (permuted_head_dim == 0) return row;
  const int64_t half = permuted_head_dim / 2;
  const int64_t in_head = row % permuted_head_dim;
  return row - in_head + 2 * (in_head % half) + in_head / half;
}

const std::byte* SourceTensor::row(int64_t canonical_row) const {
  int64_t row = file_row(canonical_row);
  if (distinct_rows > 0) row %= distinct_rows;
  return data + row * row_bytes(format, cols);
}

std::unique_ptr<WeightSource> open_model(const std::string& path, const std::string& load_format,
                                         int context) {
  if (load_format == "dummy") return make_dummy_source(path, context);
  if (load_format != "auto") {
    fail(ErrorCode::kInvalidArgument, "load_format: '{}' is not auto or dummy", load_format);
  }
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    fail(ErrorCode::kNotFound, "{}: no such file or directory", path);
  }
  if (std::filesystem::is_directory(status))
    return std::make_unique<HuggingFaceSource>(path, context);
  if (path.ends_with(".safetensors")) {
    fail(ErrorCode::kInvalidArgument, "{}: give the directory that holds it and config.json", path);
  }
  return std::make_unique<GgufSource>(path, context);
}

ModelShape model_shape(const WeightSource& source, int64_t width_multiple) {
  constexpr int64_t kFewBlocks = 16;
  constexpr int64_t kNarrow = 32;
  // Of a layer's own feed-forward, and of its experts'.
  std::array<int64_t, 2> multiples{1, 1};
  const std::array<int64_t, 2> widths{source.config().ffn, source.config().experts().expert_ffn};
  for (const SourceTensor& tensor : source.tensors()) {
    if (!tensor.name.ends_with(".down.weight")) continue;
    int64_t& multiple = multiples[tensor.name.find(".experts.") != std::string::npos];
    multiple = std::max<int64_t>(multiple, traits(tensor.format).block_elements);
  }
  for (size_t i = 0; i < 2; ++i) {
    if (widths[i] / multiples[i] < kFewBlocks && multiples[i] > kNarrow) multiples[i] = kNarrow;
    multiples[i] = std::lcm(multiples[i], width_multiple);
  }
  return source.config().shape(multiples[0], multiples[1]);
}

}  // namespace trireme
