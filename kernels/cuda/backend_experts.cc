// CudaBackend's mixtures of experts.
#include "base/error.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/experts.h"

namespace trireme::cuda {

int64_t CudaBackend::expert_scratch_bytes(const ExpertShape& shape, int64_t tokens) const {
  if (shape.experts > kMaxExperts) {
    fail(ErrorCode::kUnimplemented, "the GPU takes layers of at most {} experts, not {}",
         kMaxExperts, shape.experts);
  }
  return static_cast<int64_t>(
      carve_experts(nullptr, tokens, shape.per_token, shape.held, shape.hidden, shape.ffn).bytes);
}

void CudaBackend::experts(MatrixView x, const ExpertLayer& layer, MatrixView scratch,
                          MatrixView out, bool accumulate) {
  const Weight& gate = layer.gate[0];
  const Weight& down = layer.down[0];
  Experts args;
  args.x = x.data;
  args.x_stride = x.stride;
  args.tokens = static_cast<int32_t>(x.rows);
  args.hidden = x.cols;
  args.ffn = gate.rows;
  args.router = layer.router->data.data();
  args.gate = gate.data.data();
  args.up = layer.up[0].data.data();
  args.down = down.data.data();
  args.inner_stride = 2 * gate.rows * gate.cols;
  args.outer_stride = down.rows * down.cols;
  args.experts = static_cast<int>(layer.router->rows);
  args.per_token = layer.per_token;
  args.first = layer.first;
  args.held = static_cast<int>(layer.gate.size());
  args.normalize = layer.normalize;
  args.gelu_tanh = layer.activation == Activation::kGeluTanh;
  args.out = out.data;
  args.out_stride = out.stride;
  args.accumulate = accumulate;
  const ExpertScratch s = carve_experts(static_cast<std::byte*>(scratch.data), x.rows,
                                        args.per_token, args.held, args.hidden, args.ffn);
  // One kernel walks over all of them: they lie one after the other.
  const size_t last = layer.gate.size() - 1;
  const auto follows = [last](const Weight& first, const Weight& other, int64_t stride) {
    return first.data.data() + static_cast<int64_t>(last) * stride * kElementBytes ==
           other.data.data();
  };
  const bool together = gate.data.data() + gate.data.size() == layer.up[0].data.data() &&
                        follows(gate, layer.gate[last], args.inner_stride) &&
                        follows(down, layer.down[last], args.outer_stride);
  if (!together || static_cast<int64_t>(s.bytes) > scratch.cols * 4) {
    fail(ErrorCode::kInternal, "experts that were not made together, or scratch too small");
  }
  launch_experts(args, s, stream_);
}

}  // namespace trireme::cuda
