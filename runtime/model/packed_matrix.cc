#include "runtime/model/packed_matrix.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.h"

namespace trireme {
namespace {

using Method = QuantScheme::Method;

constexpr int kBlock = 32;
// AWQ: which nibble of a word of 8 outputs holds output i.
constexpr int kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int32_t load_i32(const std::byte* data, int64_t index) {
  int32_t value;
  std::memcpy(&value, data + index * 4, sizeof value);
  return value;
}

// Bytes of a dtype that the parts of quantized matrices have; 0: another.
int64_t unit_of(const std::string& dtype) {
  if (dtype == "I64") return 8;
  if (dtype == "I32" || dtype == "F32") return 4;
  if (dtype == "F16" || dtype == "BF16") return 2;
  return dtype == "I8" || dtype == "F8_E4M3" ? 1 : 0;
}

const std::vector<std::string> kScaleTypes = {"F16", "BF16", "F32"};

}  // namespace

PackedMatrix::PackedMatrix(const QuantScheme& scheme, const SafetensorsDirectory& files,
                           const std::string& path, const std::string& stem, int64_t rows,
                           int64_t cols)
    : scheme_(scheme),
      rows_(rows),
      cols_(cols),
      group_(scheme.block_cols > 0 ? scheme.block_cols
             : scheme.group > 0    ? scheme.group
                                   : cols),
      groups_(divide_up(cols, group_)),
      path_(path) {
  if (cols % kBlock != 0) {
    fail(ErrorCode::kUnimplemented, "{}: matrix '{}': rows of {} are not whole blocks of {}", path_,
         printable(stem), cols, kBlock);
  }
  const bool bytes = scheme.method == Method::kInt8 || scheme.method == Method::kFloat8 ||
                     scheme.method == Method::kFloat8Block;
  bytes ? take_bytes(files, stem) : take_int4(files, stem);
  const bool wide = cols % 128 == 0 && group_ % 128 == 0 && !reordered_;
  if (!bytes) {
    format_ = wide ? QuantFormat::kI4x128 : QuantFormat::kI4x32;
  } else if (scheme.method == Method::kInt8) {
    format_ = wide ? QuantFormat::kI8x128 : QuantFormat::kI8x32;
  } else {
    format_ = wide ? QuantFormat::kF8x128 : QuantFormat::kF8x32;
  }
}

const SafeTensor& PackedMatrix::take(const SafetensorsDirectory& files, const std::string& name,
                                     const std::vector<std::string>& types,
                                     const std::vector<Shape>& shapes) {
  const auto* entry = files.find(name);
  if (entry == nullptr)
    fail(ErrorCode::kDataLoss, "{}: tensor '{}' is missing", path_, printable(name));
  const SafeTensor& tensor = entry->tensor;
  const std::string& file = entry->file->path();
  if (std::ranges::find(types, tensor.dtype) == types.end()) {
    fail(ErrorCode::kDataLoss, "{}: tensor '{}' is of type {}, quantization_config needs {}", file,
         printable(name), printable(tensor.dtype), fmt::join(types, " or "));
  }
  if (std::ranges::find(shapes, tensor.shape) == shapes.end()) {
    fail(ErrorCode::kDataLoss, "{}: tensor '{}' has shape [{}], quantization_config needs [{}]",
         file, printable(name), fmt::join(tensor.shape, ", "), fmt::join(shapes.front(), ", "));
  }
  const int64_t elements = std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1},
                                           std::multiplies<>());  // small: checked above
  if (static_cast<int64_t>(tensor.bytes.size()) != elements * unit_of(tensor.dtype)) {
    fail(ErrorCode::kDataLoss, "{}: tensor '{}': shape and dtype need {} bytes, it has {}", file,
         printable(name), elements * unit_of(tensor.dtype), tensor.bytes.size());
  }
  if (name_.empty()) name_ = printable(name);
  pieces_.emplace_back(entry->file, tensor.bytes);
  return tensor;
}

void PackedMatrix::take_scales(const SafeTensor& scales, int64_t rows_each, int64_t row_stride,
                               int64_t group_stride) {
  scales_ = scales.bytes.data();
  scale_type_ = *scales.format;
  scale_rows_each_ = rows_each;
  scale_row_stride_ = row_stride;
  scale_group_stride_ = group_stride;
}

void PackedMatrix::take_int4(const SafetensorsDirectory& files, const std::string& stem) {
  const std::vector<std::string> words = {"I32"};
  if (scheme_.method == Method::kPackedInt4) {
    quants_ = take(files, stem + ".weight_packed", words, {{rows_, cols_ / 8}}).bytes.data();
    const Shape shape = {rows_, groups_};
    take_scales(take(files, stem + ".weight_scale", kScaleTypes, {shape}), 1, groups_, 1);
    if (scheme_.has_zeros) {
      const Shape packed = {divide_up(rows_, 8), groups_};
      zeros_ = take(files, stem + ".weight_zero_point", words, {packed}).bytes.data();
    }
    take_groups(files, stem + ".weight_g_idx");
    return;
  }
  if (rows_ % 8 != 0) {
    fail(ErrorCode::kUnimplemented, "{}: matrix '{}': {} outputs are not a multiple of 8", path_,
         printable(stem), rows_);
  }
  const bool awq = scheme_.method == Method::kAwq;
  const Shape shape = awq ? Shape{cols_, rows_ / 8} : Shape{cols_ / 8, rows_};
  quants_ = take(files, stem + ".qweight", words, {shape}).bytes.data();
  take_scales(take(files, stem + ".scales", kScaleTypes, {{groups_, rows_}}), 1, 1, rows_);
  zeros_ = take(files, stem + ".qzeros", words, {{groups_, rows_ / 8}}).bytes.data();
  if (!awq) take_groups(files, stem + ".g_idx");
}

void PackedMatrix::take_bytes(const SafetensorsDirectory& files, const std::string& stem) {
  const char* type = scheme_.method == Method::kInt8 ? "I8" : "F8_E4M3";
  quants_ = take(files, stem + ".weight", {type}, {{rows_, cols_}}).bytes.data();
  if (scheme_.block_rows > 0) {
    const Shape blocks = {divide_up(rows_, scheme_.block_rows), groups_};
    take_scales(take(files, stem + ".weight_scale_inv", kScaleTypes, {blocks}), scheme_.block_rows,
                groups_, 1);
    return;
  }
  // Per group; or per channel or tensor, whichever is there.
  std::vector<Shape> shapes = {{rows_, groups_}};
  if (groups_ == 1) shapes.insert(shapes.end(), {{rows_}, {1}, {}, {1, 1}});
  const SafeTensor& scales = take(files, stem + ".weight_scale", kScaleTypes, shapes);
  const int64_t count = static_cast<int64_t>(scales.bytes.size()) / unit_of(scales.dtype);
  take_scales(scales, count == 1 ? rows_ : 1, groups_, 1);
}

void PackedMatrix::take_groups(const SafetensorsDirectory& files, const std::string& name) {
  if (files.find(name) == nullptr) return;
  const SafeTensor& tensor = take(files, name, {"I32"}, {{cols_}});
  group_of_.resize(static_cast<size_t>(cols_));
  for (int64_t col = 0; col < cols_; ++col) {
    const int32_t group = load_i32(tensor.bytes.data(), col);
    if (group < 0 || group >= groups_) {
      fail(ErrorCode::kDataLoss, "{}: tensor '{}': column {} is of group {}, there are {}", path_,
           printable(name), col, group, groups_);
    }
    group_of_[static_cast<size_t>(col)] = group;
    reordered_ = reordered_ || group != col / group_;
  }
}

float PackedMatrix::scale(int64_t row, int64_t group) const {
  const int64_t at = row / scale_rows_each_ * scale_row_stride_ + group * scale_group_stride_;
  float value;
  dequantize(scale_type_, scales_ + at * row_bytes(scale_type_, 1), 1, &value);
  return value;
}

int PackedMatrix::zero(int64_t row, int64_t group) const {
  if (zeros_ == nullptr) return 8;
  const auto in_word = static_cast<int>(row % 8);
  const int64_t word = scheme_.method == Method::kPackedInt4 ? row / 8 * groups_ + group
                                                             : group * (rows_ / 8) + row / 8;
  const int at = scheme_.method == Method::kAwq ? kAwqNibble[in_word] : in_word;
  return ((load_i32(zeros_, word) >> (4 * at)) & 15) + scheme_.zero_bias;
}

int PackedMatrix::nibble(int64_t row, int64_t col) const {
  switch (scheme_.method) {
    case Method::kAwq:
      return (load_i32(quants_, col * (rows_ / 8) + row / 8) >> (4 * kAwqNibble[row % 8])) & 15;
    case Method::kGptq: return (load_i32(quants_, col / 8 * rows_ + row) >> (col % 8 * 4)) & 15;
    default: return (load_i32(quants_, row * (cols_ / 8) + col / 8) >> (col % 8 * 4)) & 15;
  }
}

std::vector<int32_t> PackedMatrix::columns(Part part) const {
  const int64_t block = traits(format_).block_elements;
  std::vector<int32_t> columns;
  if (!reordered_) {
    const int64_t begin = part.begin / block * block;
    columns.resize(static_cast<size_t>(divide_up(part.end(), block) * block - begin));
    std::iota(columns.begin(), columns.end(), static_cast<int32_t>(begin));
    return columns;
  }
  std::vector<int32_t> sorted(static_cast<size_t>(part.count));
  std::iota(sorted.begin(), sorted.end(), static_cast<int32_t>(part.begin));
  const auto group_of = [&](int32_t col) { return group_of_[static_cast<size_t>(col)]; };
  std::ranges::stable_sort(sorted, {}, group_of);
  for (const int32_t col : sorted) {
    if (!columns.empty() && columns.back() >= 0 && group_of(columns.back()) != group_of(col)) {
      columns.resize((columns.size() + kBlock - 1) / kBlock * kBlock, -1);
    }
    columns.push_back(col);
  }
  columns.resize((columns.size() + kBlock - 1) / kBlock * kBlock, -1);
  return columns;
}

void PackedMatrix::read(int64_t row, std::span<const int32_t> columns, std::byte* out) const {
  const QuantTraits& t = traits(format_);
  const auto elements = static_cast<size_t>(t.block_elements);
  const bool four_bits = format_ == QuantFormat::kI4x32 || format_ == QuantFormat::kI4x128;
  for (size_t at = 0; at < columns.size(); at += elements, out += t.block_bytes) {
    const auto block = columns.subspan(at, elements);
    const int64_t group = reordered_ ? group_of_[static_cast<size_t>(block[0])] : block[0] / group_;
    const float d = scale(row, group);
    std::memcpy(out, &d, sizeof d);
    if (!four_bits) {
      std::memcpy(out + 4, quants_ + row * cols_ + block[0], elements);
      if (!is_e4m3(format_)) continue;
      const auto nan = [](std::byte b) { return (b & std::byte{0x7f}) == std::byte{0x7f}; };
      if (std::any_of(out + 4, out + 4 + elements, nan)) {
        fail(ErrorCode::kDataLoss, "{}: tensor '{}': row {} holds a NaN", path_, name_, row);
      }
      continue;
    }
    const int middle = zero(row, group);
    out[4] = static_cast<std::byte>(middle);
    for (size_t i = 0; i < elements; i += kBlock) {
      for (size_t j = 0; j < 16; ++j) {
        const int32_t low = block[i + j], high = block[i + j + 16];
        const int q = (low < 0 ? 0 : nibble(row, low)) | (high < 0 ? 0 : nibble(row, high) << 4);
        out[5 + i / 2 + j] = static_cast<std::byte>(q);
      }
    }
  }
}

void PackedMatrix::release() const {
  for (const auto& [file, bytes] : pieces_) file->release(bytes);
}

}  // namespace trireme
