// A quantized matrix of a safetensors directory, whose parts (integers, scales, zero points) lie in
// tensors of their own and in their tool's order: read row by row as blocks of our formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/mapped_file.h"
#include "kernels/quant.h"
#include "parallel/layout.h"
#include "runtime/model/quant_scheme.h"
#include "runtime/model/safetensors.h"

namespace trireme {

class PackedMatrix {
 public:
  // `stem`: the matrix's name without ".weight"; `path` (the directory) begins messages. Throws
  // kDataLoss (a part is missing, or of another type or shape than [rows, cols] needs),
  // kUnimplemented (cols are not whole blocks of 32).
  PackedMatrix(const QuantScheme& scheme, const SafetensorsDirectory& files,
               const std::string& path, const std::string& stem, int64_t rows, int64_t cols);

  QuantFormat format() const { return format_; }
  // Whether groups are not runs of columns (act-order): blocks then hold columns of one group each.
  bool reordered() const { return reordered_; }
  // Which columns the blocks hold that cover `part`, in order; -1: a column of none. Without
  // act-order the blocks that `part` touches; with it, columns of `part` by group.
  std::vector<int32_t> columns(Part part) const;
  // The blocks of these columns: row_bytes(format(), columns.size()) bytes. From any thread.
  void read(int64_t row, std::span<const int32_t> columns, std::byte* out) const;

  // Tells the OS that this rank has read what it needs.
  void release() const;

 private:
  using Shape = std::vector<int64_t>;
  // One of the matrix's tensors, of one of `types` and one of `shapes`.
  const SafeTensor& take(const SafetensorsDirectory& files, const std::string& name,
                         const std::vector<std::string>& types, const std::vector<Shape>& shapes);
  void take_int4(const SafetensorsDirectory& files, const std::string& stem);
  void take_bytes(const SafetensorsDirectory& files, const std::string& stem);
  void take_scales(const SafeTensor& scales, int64_t rows_each, int64_t row_stride,
                   int64_t group_stride);
  void take_groups(const SafetensorsDirectory& files, const std::string& name);

  float scale(int64_t row, int64_t group) const;
  int zero(int64_t row, int64_t group) const;
  int nibble(int64_t row, int64_t col) const;

  QuantScheme scheme_;
  int64_t rows_;
  int64_t cols_;
  int64_t group_;  // columns that share a scale
  int64_t groups_;
  QuantFormat format_ = QuantFormat::kI4x32;
  bool reordered_ = false;
  std::string path_;
  std::string name_;  // of the integers, for messages
  const std::byte* quants_ = nullptr;
  const std::byte* zeros_ = nullptr;  // null: the middle
  const std::byte* scales_ = nullptr;
  QuantFormat scale_type_ = QuantFormat::kF32;
  // The scale of a row and a group is number row / rows_each * row_stride + group * group_stride.
  int64_t scale_rows_each_ = 1, scale_row_stride_ = 0, scale_group_stride_ = 0;
  std::vector<int32_t> group_of_;  // [cols], where reordered
  std::vector<std::pair<const MappedFile*, std::span<const std::byte>>> pieces_;
};

}  // namespace trireme
