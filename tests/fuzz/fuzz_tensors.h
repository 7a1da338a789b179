// Reads all of a model that was accepted, as loading it would.
#pragma once

#include <vector>

#include "runtime/model/packed_matrix.h"
#include "runtime/model/weight_source.h"

namespace trireme::fuzz {

// The first and the last byte of every row of plain tensors, and every block of packed ones.
inline void read_all(const WeightSource& source) {
  model_shape(source, 8);
  volatile unsigned char seen = 0;
  std::vector<std::byte> blocks;
  for (const SourceTensor& tensor : source.tensors()) {
    if (tensor.packed) {
      const auto columns = tensor.packed->columns({0, tensor.cols});
      blocks.resize(row_bytes(tensor.format, static_cast<int64_t>(columns.size())));
      for (int64_t row = 0; row < tensor.rows; ++row) {
        tensor.packed->read(row, columns, blocks.data());
      }
      continue;
    }
    const size_t bytes = row_bytes(tensor.format, tensor.cols);
    for (int64_t row = 0; row < tensor.rows; ++row) {
      const std::byte* at = tensor.row(row);
      seen = static_cast<unsigned char>(at[0]);
      seen = static_cast<unsigned char>(at[bytes - 1]);
    }
  }
  static_cast<void>(seen);
}

}  // namespace trireme::fuzz
