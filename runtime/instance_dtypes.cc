#include "runtime/instance_dtypes.h"

#include <algorithm>

#include "base/error.h"
#include "runtime/model/arch_table.h"

namespace trireme {
namespace {

// Routers are small, and kept as F32 in files that are F16 otherwise.
bool all_matrices_are_f16(const WeightSource& source) {
  const auto tensors = source.tensors();
  return std::all_of(tensors.begin(), tensors.end(), [](const SourceTensor& tensor) {
    return tensor.rows == 1 || tensor.name.ends_with(".router.weight") ||
           tensor.format == QuantFormat::kF16;
  });
}

bool fits_f16(const std::string& architecture) {
  const auto rows = architectures();
  return std::none_of(rows.begin(), rows.end(), [&](const Architecture& row) {
    return row.name == architecture && row.exceeds_f16;
  });
}

}  // namespace

DType element_of(const InstanceOptions& options, const WeightSource& source, bool gpu) {
  if (options.dtype != "auto" && options.dtype != "bf16" && options.dtype != "f16") {
    fail(ErrorCode::kInvalidArgument, "dtype: '{}' is not auto, bf16 or f16", options.dtype);
  }
  if (!gpu && options.dtype != "auto") {
    fail(ErrorCode::kInvalidArgument,
         "dtype: '{}' is for GPUs; the CPU multiplies weights as the files have them",
         options.dtype);
  }
  if (gpu && options.deterministic) {
    fail(ErrorCode::kInvalidArgument,
         "deterministic: on GPUs a row's bits depend on the rows beside it; with device cpu they "
         "do not");
  }
  if (options.dtype != "auto") return options.dtype == "f16" ? DType::kF16 : DType::kBF16;
  return all_matrices_are_f16(source) && fits_f16(source.config().architecture) ? DType::kF16
                                                                                : DType::kBF16;
}

DType kv_dtype_of(const InstanceOptions& options, const WeightSource& source,
                  const Backend& backend, bool gpu) {
  if (options.kv_dtype == "f32") return DType::kF32;
  if (options.kv_dtype == "f16") return DType::kF16;
  if (options.kv_dtype == "bf16") return DType::kBF16;
  if (options.kv_dtype != "auto") {
    fail(ErrorCode::kInvalidArgument, "kv_dtype: '{}' is not auto, f32, f16 or bf16",
         options.kv_dtype);
  }
  if (gpu) return backend.activation_dtype();
  const auto weight = source.find("layers.0.q.weight");
  return weight && weight->format == QuantFormat::kF32 ? DType::kF32 : DType::kF16;
}

}  // namespace trireme
