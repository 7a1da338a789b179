#include "runtime/model/model_tensors.h"

#include <fmt/format.h>

namespace trireme {
namespace {

class List {
 public:
  void matrix(std::string name, int64_t rows, int64_t cols) {
    all.push_back({std::move(name), rows, cols, false});
  }
  void vector(std::string name, int64_t count) { all.push_back({std::move(name), 1, count, true}); }

  std::vector<TensorShape> all;
};

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
  list.vector(name("ffn_norm.weight"), hidden);
  list.matrix(name("gate.weight"), config.ffn, hidden);
  list.matrix(name("up.weight"), config.ffn, hidden);
  list.matrix(name("down.weight"), hidden, config.ffn);
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

}  // namespace trireme
