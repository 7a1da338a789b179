#include "runtime/model/model_tensors.h"

#include <fmt/format.h>

namespace trireme {
namespace {

class List {
 public:
  void matrix(std::string name, int64_t rows, int64_t cols) {
    all.push_back({std::move(name), rows, cols, false});
  }
  void expert(std::string name, int64_t rows, int64_t cols, int64_t index, int64_t count) {
    all.push_back({std::move(name), rows, cols, false, index, count});
  }
  void vector(std::string name, int64_t count) { all.push_back({std::move(name), 1, count, true}); }

  std::vector<TensorShape> all;
};

void add_experts(List& list, const ExpertConfig& experts, int64_t hidden, int layer) {
  list.matrix(layer_tensor(layer, "router.weight"), experts.experts, hidden);
  for (int e = 0; e < experts.experts; ++e) {
    const auto add = [&](const char* tensor, int64_t rows, int64_t cols) {
      list.expert(expert_tensor(layer, e, tensor), rows, cols, e, experts.experts);
    };
    add("gate.weight", experts.expert_ffn, hidden);
    add("up.weight", experts.expert_ffn, hidden);
    add("down.weight", hidden, experts.expert_ffn);
  }
}

void add_layer(List& list, const ModelConfig& config, int index) {
  const LayerConfig& layer = config.layers[static_cast<size_t>(index)];
  const auto name = [index](const char* tensor) { return layer_tensor(index, tensor); };
  const int64_t hidden = config.hidden;
  const int64_t q = int64_t{config.q_heads} * config.head_dim;
  const int64_t kv = int64_t{config.kv_heads} * config.head_dim;
  list.vector(name("attn_norm.weight"), hidden);
  list.matrix(name("q.weight"), q, hidden);
  list.matrix(name("k.weight"), kv, hidden);
  list.matrix(name("v.weight"), kv, hidden);
  if (layer.qkv_bias) {
    list.vector(name("q.bias"), q);
    list.vector(name("k.bias"), kv);
    list.vector(name("v.bias"), kv);
  }
  if (layer.qk_norm) {
    list.vector(name("q_norm.weight"), config.head_dim);
    list.vector(name("k_norm.weight"), config.head_dim);
  }
  list.matrix(name("o.weight"), hidden, q);
  if (layer.o_bias) list.vector(name("o.bias"), hidden);
  if (layer.post_norms) list.vector(name("attn_post_norm.weight"), hidden);
  list.vector(name("ffn_norm.weight"), hidden);
  if (layer.experts.experts > 0) {
    add_experts(list, layer.experts, hidden, index);
  } else {
    list.matrix(name("gate.weight"), config.ffn, hidden);
    list.matrix(name("up.weight"), config.ffn, hidden);
    list.matrix(name("down.weight"), hidden, config.ffn);
  }
  if (layer.post_norms) list.vector(name("ffn_post_norm.weight"), hidden);
}

}  // namespace

std::vector<TensorShape> model_tensors(const ModelConfig& config) {
  List list;
  list.matrix("embed.weight", config.vocab, config.hidden);
  for (int i = 0; i < static_cast<int>(config.layers.size()); ++i) add_layer(list, config, i);
  list.vector("norm.weight", config.hidden);
  if (!config.tied_embeddings) list.matrix("head.weight", config.vocab, config.hidden);
  return std::move(list.all);
}

std::string layer_tensor(int layer, const char* name) {
  return fmt::format("layers.{}.{}", layer, name);
}

std::string expert_tensor(int layer, int expert, const char* name) {
  return fmt::format("layers.{}.experts.{}.{}", layer, expert, name);
}

}  // namespace trireme
