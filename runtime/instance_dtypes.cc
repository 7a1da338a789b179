#include "runtime/instance_dtypes.h"

#include "base/error.h"

namespace trireme {

DType element_of(const InstanceOptions& options, bool gpu) {
  if (options.dtype != "auto" && options.dtype != "bf16" && options.dtype != "f16") {
    fail(ErrorCode::kInvalidArgument, "dtype: '{}' is not auto, bf16 or f16", options.dtype);
  }
  if (!gpu && options.dtype != "auto") {
    fail(ErrorCode::kInvalidArgument,
         "dtype: '{}' is for GPUs; the CPU multiplies weights as the files have them",
         options.dtype);
  }
  // Not f16 for files of f16 by itself yet: that module has only been compiled (ADR 15).
  return options.dtype == "f16" ? DType::kF16 : DType::kBF16;
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
