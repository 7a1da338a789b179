#include "runtime/model/quant_scheme.h"

#include <algorithm>

#include "base/error.h"

namespace trireme {
namespace {

using Method = QuantScheme::Method;

constexpr int64_t kLargestGroup = int64_t{1} << 20;

[[noreturn]] void unknown(const JsonFields& fields, const char* key, const std::string& value,
                          const char* known) {
  fail(ErrorCode::kUnimplemented, "{}: field '{}': {} is not supported; supported is {}",
       fields.what(), key, printable(value), known);
}

// Whole blocks of 32; -1 (or absent): the whole row.
int64_t group_size(const JsonFields& fields) {
  const int64_t group = fields.integer("group_size", -1, kLargestGroup).value_or(-1);
  if (group == -1) return 0;
  if (group == 0 || group % 32 != 0) {
    unknown(fields, "group_size", std::to_string(group), "-1 and multiples of 32");
  }
  return group;
}

void need_four_bits(const JsonFields& fields, const char* key) {
  const int64_t bits = fields.required_integer(key, 1, 64);
  if (bits != 4) unknown(fields, key, std::to_string(bits), "4");
}

QuantScheme parse_awq(const JsonFields& fields) {
  need_four_bits(fields, fields.has("bits") ? "bits" : "w_bit");
  const std::string version = fields.string("version").value_or("gemm");
  if (version != "gemm" && version != "GEMM") unknown(fields, "version", version, "gemm");
  QuantScheme scheme;
  scheme.method = Method::kAwq;
  scheme.group = group_size(fields);
  scheme.has_zeros = true;
  return scheme;
}

QuantScheme parse_gptq(const JsonFields& fields) {
  need_four_bits(fields, "bits");
  const std::string format = fields.string("checkpoint_format").value_or("gptq");
  if (format != "gptq" && format != "gptq_v2") {
    unknown(fields, "checkpoint_format", format, "gptq and gptq_v2");
  }
  QuantScheme scheme;
  scheme.method = Method::kGptq;
  scheme.group = group_size(fields);
  scheme.has_zeros = true;
  scheme.zero_bias = format == "gptq" ? 1 : 0;
  return scheme;
}

QuantScheme parse_fp8(const JsonFields& fields) {
  QuantScheme scheme;
  scheme.method = Method::kFloat8Block;
  const std::string format = fields.string("fmt").value_or("e4m3");
  if (format != "e4m3") unknown(fields, "fmt", format, "e4m3");
  const Json* block = fields.find("weight_block_size");
  if (block == nullptr) return scheme;
  const auto size = [&](size_t i) -> int64_t {
    const Json& item = (*block)[i];
    const bool good = item.is_number_unsigned() && item.get<uint64_t>() > 0 &&
                      item.get<uint64_t>() <= uint64_t{kLargestGroup};
    return good ? item.get<int64_t>() : 0;
  };
  if (!block->is_array() || block->size() != 2 || size(0) == 0 || size(1) == 0) {
    fail(ErrorCode::kDataLoss, "{}: field 'weight_block_size' is not a pair of sizes",
         fields.what());
  }
  scheme.block_rows = size(0);
  scheme.block_cols = size(1);
  if (scheme.block_cols % 32 != 0) {
    unknown(fields, "weight_block_size", block->dump(), "multiples of 32 inputs");
  }
  return scheme;
}

// One group of targets, whose weights' field says how they are quantized.
QuantScheme parse_weights(const JsonFields& weights, const std::string& format) {
  QuantScheme scheme;
  const std::string type = weights.string("type").value_or("int");
  const int64_t bits = weights.required_integer("num_bits", 1, 64);
  const std::string strategy = weights.string("strategy").value_or("tensor");
  const bool symmetric = weights.boolean("symmetric").value_or(true);
  scheme.group = group_size(weights);
  if (strategy != "tensor" && strategy != "channel" && strategy != "group" && strategy != "block") {
    unknown(weights, "strategy", strategy, "tensor, channel, group and block");
  }
  const auto is = [&](const char* wanted, const char* kind, int64_t width) {
    return format == wanted && type == kind && bits == width;
  };
  if (is("pack-quantized", "int", 4)) {
    scheme.method = Method::kPackedInt4;
    scheme.has_zeros = !symmetric;
  } else if (is("int-quantized", "int", 8)) {
    scheme.method = Method::kInt8;
    if (!symmetric) unknown(weights, "symmetric", "false", "true for int8 weights");
  } else if (is("float-quantized", "float", 8)) {
    scheme.method = Method::kFloat8;
  } else {
    unknown(weights, "format", format + " of " + std::to_string(bits) + "-bit " + type,
            "pack-quantized of 4-bit int, int-quantized of 8-bit int, float-quantized of 8-bit "
            "float");
  }
  if (strategy == "block") unknown(weights, "strategy", strategy, "tensor, channel and group");
  if (strategy != "group" && scheme.group != 0) scheme.group = 0;
  return scheme;
}

QuantScheme parse_compressed_tensors(const JsonFields& fields) {
  const std::string format = fields.string("format").value_or("");
  const Json* groups = fields.find("config_groups");
  if (groups == nullptr || !groups->is_object() || groups->empty()) {
    fail(ErrorCode::kDataLoss, "{}: field 'config_groups' is missing or not an object",
         fields.what());
  }
  if (groups->size() != 1) {
    unknown(fields, "config_groups", std::to_string(groups->size()) + " groups", "one");
  }
  const std::string what = fields.what() + ": config_groups";
  const JsonFields group(*groups->begin(), what);
  const Json* weights = group.find("weights");
  if (weights == nullptr) fail(ErrorCode::kDataLoss, "{}: field 'weights' is missing", what);
  return parse_weights(JsonFields(*weights, what + ": weights"),
                       group.string("format").value_or(format));
}

}  // namespace

std::optional<QuantScheme> parse_quant_scheme(const Json& config, const std::string& path) {
  const Json* field = JsonFields(config, path).find("quantization_config");
  if (field == nullptr) return std::nullopt;
  const JsonFields fields(*field, path + ": quantization_config");
  const std::string method = fields.string("quant_method").value_or("");
  if (method == "awq") return parse_awq(fields);
  if (method == "gptq") return parse_gptq(fields);
  if (method == "fp8") return parse_fp8(fields);
  if (method == "compressed-tensors") return parse_compressed_tensors(fields);
  fail(ErrorCode::kUnimplemented,
       "{}: field 'quant_method': '{}' is not supported; supported are awq, gptq, fp8 and "
       "compressed-tensors",
       fields.what(), printable(method));
}

}  // namespace trireme
