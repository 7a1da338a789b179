// config.json's quantization_config: which method wrote a directory's quantized matrices, and how.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/model/json_file.h"

namespace trireme {

struct QuantScheme {
  enum class Method : uint8_t {
    kAwq,          // 4 bits, packed along the outputs in AWQ's order
    kGptq,         // 4 bits, packed along the inputs; g_idx may reorder groups (act-order)
    kPackedInt4,   // compressed-tensors, "pack-quantized"
    kInt8,         // compressed-tensors, "int-quantized": per tensor, channel or group
    kFloat8,       // compressed-tensors, "float-quantized": per tensor or channel
    kFloat8Block,  // quant_method "fp8": blocks with weight_scale_inv, or one weight_scale
  };
  Method method = Method::kAwq;
  int64_t group = 0;       // inputs that share a scale; 0: all of them
  bool has_zeros = false;  // zero points are stored (else the middle, 8)
  int zero_bias = 0;       // what is added to a stored zero point
  int64_t block_rows = 0;  // kFloat8Block: outputs and inputs of a block; 0: the whole matrix
  int64_t block_cols = 0;
};

// `config`: config.json, read from `path`. Empty: weights are plain. Throws kUnimplemented naming
// what is not done here (a method, a number of bits, a format), kDataLoss for a malformed field.
// Quantized activations that a file asks for (W8A8, static or dynamic FP8) are ignored: products
// take activations of 15 bits or more.
std::optional<QuantScheme> parse_quant_scheme(const Json& config, const std::string& path);

}  // namespace trireme
