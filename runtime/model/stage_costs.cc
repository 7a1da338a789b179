#include "runtime/model/stage_costs.h"

#include <algorithm>
#include <cmath>

#include "runtime/model/model_tensors.h"

namespace trireme {
namespace {

constexpr double kRows = 16;
constexpr double kContext = 512;

double matrix_cost(const SourceTensor& tensor, const Backend& backend) {
  WeightSlice slice{tensor.format, tensor.rows, tensor.cols, 0, tensor.cols, {}};
  const double elements = static_cast<double>(tensor.rows) * static_cast<double>(tensor.cols);
  return std::max(static_cast<double>(backend.weight_bytes(slice)),
                  2 * kRows * elements / backend.operations_per_byte());
}

// Of the experts' matrices like this one's.
double expert_cost(const SourceTensor& tensor, const ExpertConfig& experts,
                   const Backend& backend) {
  WeightSlice slice{tensor.format, tensor.rows, tensor.cols, 0, tensor.cols, {}};
  const double elements = static_cast<double>(tensor.rows) * static_cast<double>(tensor.cols);
  return std::max(experts_read(experts, kRows) * static_cast<double>(backend.weight_bytes(slice)),
                  2 * kRows * experts.experts_per_token * elements / backend.operations_per_byte());
}

double attention_cost(const ModelConfig& config, const LayerConfig& layer, const Backend& backend) {
  const double context = layer.window > 0 ? std::min<double>(layer.window, kContext) : kContext;
  const double kv = 2.0 * config.kv_heads * config.head_dim * 2;  // bytes a token, of 16 bits
  const double products = 4.0 * config.q_heads * config.head_dim;
  return kRows * context * std::max(kv, products / backend.operations_per_byte());
}

}  // namespace

double experts_read(const ExpertConfig& experts, double rows) {
  const double share = static_cast<double>(experts.experts_per_token) / experts.experts;
  return experts.experts * (1 - std::pow(1 - share, rows));
}

StageCosts stage_costs(const WeightSource& source, const Backend& backend) {
  const ModelConfig& config = source.config();
  const auto activation = static_cast<double>(size_of(backend.activation_dtype()));
  const double hidden = config.hidden;
  StageCosts costs;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    double cost = attention_cost(config, config.layers[i], backend);
    const auto layer = static_cast<int>(i);
    for (const char* name : {"q.weight", "k.weight", "v.weight", "o.weight", "gate.weight",
                             "up.weight", "down.weight", "router.weight"}) {
      const auto tensor = source.find(layer_tensor(layer, name));
      if (tensor) cost += matrix_cost(*tensor, backend);
    }
    const ExpertConfig& experts = config.layers[i].experts;
    for (const char* name : {"gate.weight", "up.weight", "down.weight"}) {
      const auto tensor = source.find(expert_tensor(layer, 0, name));
      if (tensor) cost += expert_cost(*tensor, experts, backend);
    }
    // Each product's input and output, and the residual stream (float32) at both sums.
    const double ffn = experts.experts > 0
                           ? 1.0 * experts.experts_per_token * (experts.expert_ffn + hidden)
                           : config.ffn;
    cost += kRows * (activation * (6 * hidden + 4.0 * ffn) + 4 * 4 * hidden);
    costs.layers.push_back(cost);
  }
  costs.first = kRows * hidden * (activation + 4);
  const auto head = source.find(config.tied_embeddings ? "embed.weight" : "head.weight");
  if (head) costs.last = matrix_cost(*head, backend);
  // Logits are written once and read about three times: the best, their sum, the draw.
  costs.last += kRows * static_cast<double>(config.vocab) * 4 * 4;
  return costs;
}

}  // namespace trireme
