#include "runtime/model/weight_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
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

// [rows, cols] with leading ones dropped; vectors are one row.
bool has_shape(const FileTensor& tensor, const TensorShape& wanted) {
  auto shape = tensor.shape;
  const size_t rank = wanted.vector ? 1 : 2;
  while (shape.size() > rank && shape.front() == 1) shape.erase(shape.begin());
  if (shape.size() != rank || shape.back() != wanted.cols) return false;
  return wanted.vector || shape.front() == wanted.rows;
}

SourceTensor check_tensor(const FileTensor& found, const TensorShape& wanted) {
  const std::string& path = found.file->path();
  if (!has_shape(found, wanted)) {
    const std::string needed = wanted.vector ? fmt::format("{}", wanted.cols)
                                             : fmt::format("{}, {}", wanted.rows, wanted.cols);
    fail(ErrorCode::kDataLoss, "{}: tensor '{}' has shape [{}], the configuration needs [{}]", path,
         found.name, fmt::join(found.shape, ", "), needed);
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
  tensor.data = found.data;
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
  explicit HuggingFaceSource(const std::string& directory) : MappedSource(directory) {
    const auto parsed = read_config(directory);
    config_ = parsed.model;
    files_.emplace(directory);
    if (!parsed.tied_embeddings) {
      config_.tied_embeddings = !has_matrix(hugging_face_name(*parsed.architecture, "head.weight"));
    }
    if (config_.name.empty()) {
      config_.name = std::filesystem::path(directory).lexically_normal().filename().string();
    }
    for (const TensorShape& wanted : model_tensors(config_)) {
      const std::string name = hugging_face_name(*parsed.architecture, wanted.name);
      const auto* entry = files_->find(name);
      const bool plain = entry != nullptr && entry->tensor.format;
      if (parsed.quantized && !plain && !wanted.vector) {
        add_packed(*parsed.quantized, name, wanted);
        continue;
      }
      if (entry == nullptr) missing(name);
      const SafeTensor& tensor = entry->tensor;
      add(check_tensor(
              {name, tensor.dtype, tensor.format, tensor.shape, tensor.bytes.data(), entry->file},
              wanted),
          entry->file);
    }
  }

 private:
  // "….weight" or what a quantizer writes in its place.
  static std::string stem_of(const std::string& name) {
    return name.substr(0, name.size() - std::string_view(".weight").size());
  }
  bool has_matrix(const std::string& name) const {
    for (const char* part : {".weight", ".qweight", ".weight_packed"}) {
      if (files_->find(stem_of(name) + part) != nullptr) return true;
    }
    return false;
  }

  void add_packed(const QuantScheme& scheme, const std::string& name, const TensorShape& wanted) {
    if (!has_matrix(name)) missing(name);
    SourceTensor tensor;
    tensor.name = wanted.name;
    tensor.origin = name;
    tensor.rows = wanted.rows;
    tensor.cols = wanted.cols;
    tensor.packed = std::make_shared<PackedMatrix>(scheme, *files_, path(), stem_of(name),
                                                   wanted.rows, wanted.cols);
    tensor.format = tensor.packed->format();
    add(std::move(tensor), nullptr);
  }

  static HuggingFaceConfig read_config(const std::string& directory) {
    const std::string path = directory + "/config.json";
    const std::string generation_path = directory + "/generation_config.json";
    const Json config = read_json_file(path);
    Json generation;
    if (std::filesystem::exists(generation_path)) generation = read_json_file(generation_path);
    return parse_hugging_face_config(config, generation.is_null() ? nullptr : &generation, path);
  }

  std::optional<SafetensorsDirectory> files_;
};

class GgufSource : public MappedSource {
 public:
  explicit GgufSource(const std::string& path)
      : MappedSource(path), file_(path), gguf_(file_.bytes(), path) {
    const auto parsed = parse_gguf_config(gguf_);
    config_ = parsed.model;
    for (const TensorShape& wanted : model_tensors(config_)) {
      const std::string name = gguf_name(*parsed.architecture, wanted.name);
      const GgufTensor* found = gguf_.find_tensor(name);
      if (found == nullptr) missing(name);
      SourceTensor tensor = check_tensor({name, gguf_type_name(found->type), found->format,
                                          found->shape, found->bytes.data(), &file_},
                                         wanted);
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

std::unique_ptr<WeightSource> open_model(const std::string& path, const std::string& load_format) {
  if (load_format == "dummy") return make_dummy_source(path);
  if (load_format != "auto") {
    fail(ErrorCode::kInvalidArgument, "load_format: '{}' is not auto or dummy", load_format);
  }
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    fail(ErrorCode::kNotFound, "{}: no such file or directory", path);
  }
  if (std::filesystem::is_directory(status)) return std::make_unique<HuggingFaceSource>(path);
  if (path.ends_with(".safetensors")) {
    fail(ErrorCode::kInvalidArgument, "{}: give the directory that holds it and config.json", path);
  }
  return std::make_unique<GgufSource>(path);
}

ModelShape model_shape(const WeightSource& source, int64_t width_multiple) {
  constexpr int64_t kFewBlocks = 16;
  constexpr int64_t kNarrow = 32;
  const int64_t ffn = source.config().ffn;
  int64_t multiple = 1;
  for (const SourceTensor& tensor : source.tensors()) {
    if (!tensor.name.ends_with(".down.weight")) continue;
    multiple = std::max<int64_t>(multiple, traits(tensor.format).block_elements);
  }
  if (ffn / multiple < kFewBlocks && multiple > kNarrow) multiple = kNarrow;
  return source.config().shape(std::lcm(multiple, width_multiple));
}

}  // namespace trireme
